"""Finds the model that a user names: built in, a folder, a hub id, or a shape preset (no torch)."""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from longctx.errors import ModelError, UsageError
from longctx.hub import cache_folder, cached_ids, download, find_in_cache
from longctx.shapes import PRESETS, ModelShape, shape_from_folder
from longctx.weight_formats import WEIGHT_FORMATS, weight_format_of_folder

BUILTIN_FOLDER = Path(__file__).parent / "data" / "model"
# The fake runner holds no weights; its shape is small, so that its plan fits on any machine.
FAKE_SHAPE = ModelShape(
    name="fake", architecture="Qwen3ForCausalLM", layers=2, hidden=64, query_heads=4, kv_heads=2,
    head_dim=16, intermediate=128, vocab=512, max_positions=1_048_576, tied_embeddings=True,
    qk_norm=True,
)  # fmt: skip
INDEX_NAME = "model.safetensors.index.json"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")


@dataclass(frozen=True)
class ResolvedModel:
    """A model that exists, and what it takes to load it.

    Args:
        spec: the user's words.
        kind: builtin | folder | hub | shape | fake.
        folder: the checkpoint's folder; None for shape and fake.
        shape: sizes of the model.
        random_weights: weights are drawn at load time, so the model cannot recall anything.
        weight_format: None (plain floating point), "fp8" or "nvfp4".
    """

    spec: str
    kind: str
    folder: Path | None
    shape: ModelShape
    random_weights: bool
    weight_format: str | None = None


def resolve_model(
    spec: str = "builtin",
    *,
    allow_download: bool = True,
    need_weights: bool = True,
    say: Callable[[str], None] | None = None,
) -> ResolvedModel:
    """The model that `spec` names.

    Args:
        spec: `builtin`; the path of a Hugging Face style folder; a hub id (`Qwen/Qwen3-4B`,
            optionally `@revision`) that is looked up in the local cache first; `shape:NAME` or
            `shape:NAME@nvfp4` for random weights; `fake` for the arithmetic-only double.
        allow_download: fetch a hub id that is not in the cache (needs huggingface_hub).
        need_weights: also require the weight files; False is enough to plan.
        say: gets one line before a download starts; default: stderr.

    Raises:
        UsageError: the words name nothing; the hint gives the nearest names.
        ModelError: the model exists but cannot be used, or could not be fetched.
    """
    if not spec.strip():
        raise UsageError("The model's name is empty.", hint=_where_models_come_from())
    if spec == "builtin":
        return _from_folder(spec, "builtin", BUILTIN_FOLDER, need_weights)
    if spec == "fake":
        return ResolvedModel(spec, "fake", None, FAKE_SHAPE, random_weights=True)
    if spec.lower().startswith("shape:"):
        return _from_preset(spec)
    path = Path(spec).expanduser()
    if path.exists() or spec.startswith(("/", "./", "../", "~")):
        return _from_folder(spec, "folder", path, need_weights)
    if _HUB_ID.fullmatch(spec):
        return _from_hub(spec, allow_download, need_weights, say or _say_on_stderr)
    raise _unknown(spec)


def _from_preset(spec: str) -> ResolvedModel:
    name, _, weight_format = spec[len("shape:") :].strip().lower().partition("@")
    if name not in PRESETS:
        near = _nearest(name, list(PRESETS))
        hint = f"Did you mean shape:{near[0]}? " if near else ""
        raise UsageError(
            f"There is no shape preset {name!r}.", hint=f"{hint}Presets: {', '.join(PRESETS)}."
        )
    if weight_format and weight_format not in WEIGHT_FORMATS:
        raise UsageError(
            f"{spec}: there is no weight format {weight_format!r}.",
            hint=f"After @ stands one of: {', '.join(WEIGHT_FORMATS)}.",
        )
    return ResolvedModel(spec, "shape", None, PRESETS[name], True, weight_format or None)


def _from_folder(spec: str, kind: str, path: Path, need_weights: bool) -> ResolvedModel:
    if path.is_file():
        if path.suffix == ".gguf":
            raise ModelError(
                f"{path} is a GGUF file, which longctx does not read.",
                hint="Give the folder of the safetensors checkpoint that it was made from.",
            )
        raise UsageError(
            f"--model {spec} is a file; a checkpoint is a folder.",
            hint=f"Try --model {path.parent}",
        )
    if not path.is_dir():
        raise UsageError(f"--model {spec}: there is no such folder.", hint=_folder_hint(path))
    if (path / "adapter_config.json").exists() and not (path / "config.json").exists():
        raise ModelError(
            f"{path} holds an adapter (LoRA), not a whole model.",
            hint="Merge it into its base model first, and give the merged folder.",
        )
    shape = shape_from_folder(path)
    if need_weights:
        missing = missing_weights(path)
        if missing:
            raise ModelError(f"{path}: {missing[0]}", hint=missing[1])
    return ResolvedModel(spec, kind, path, shape, False, weight_format_of_folder(path))


def missing_weights(folder: Path) -> tuple[str, str] | None:
    """Why the weights in `folder` are incomplete (what, remedy); None when all files are there."""
    index = folder / INDEX_NAME
    if index.exists():
        try:
            shards = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            return f"{INDEX_NAME} cannot be read: {error!r}.", "Copy or download it again."
        gone = sorted(name for name in shards if not (folder / name).exists())
        if gone:
            more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
            return (
                f"{len(gone)} of {len(shards)} weight files that the index names are missing "
                f"({gone[0]}{more}).",
                "The download was probably cut short; fetch the checkpoint again.",
            )
        return None
    if any(folder.glob("*.safetensors")):
        return None
    if any(folder.glob("*.bin")) or any(folder.glob("*.pth")):
        return (
            "the weights are pickled PyTorch files, which longctx does not load.",
            "Convert them: transformers' save_pretrained(..., safe_serialization=True).",
        )
    return (
        "there are no *.safetensors files.",
        "Give the folder that holds config.json and the weights.",
    )


def _from_snapshot(spec: str, repo: str, folder: Path, need_weights: bool) -> ResolvedModel:
    model = _from_folder(spec, "hub", folder, need_weights)
    return replace(model, shape=replace(model.shape, name=repo))  # the folder's name is a hash


def _from_hub(
    spec: str, allow_download: bool, need_weights: bool, say: Callable[[str], None]
) -> ResolvedModel:
    repo, _, revision = spec.partition("@")
    folder = find_in_cache(repo, revision or "main")
    problem = None
    if folder is not None:
        if not (folder / "config.json").exists():
            problem = f"its cached snapshot {folder} has no config.json"
        elif need_weights and (missing := missing_weights(folder)):
            problem = f"its cached snapshot {folder} is incomplete: {missing[0].rstrip('.')}"
        if problem is None:
            return _from_snapshot(spec, repo, folder, need_weights)
    where = problem or f"it is not in the Hugging Face cache ({cache_folder()})"
    if not allow_download:
        raise ModelError(f"{spec}: {where}.", hint=_hub_hint(repo))
    folder = download(repo, revision or None, need_weights, where, say, _hub_hint(repo))
    return _from_snapshot(spec, repo, folder, need_weights)


def _hub_hint(repo: str) -> str:
    near = _nearest(repo, cached_ids())
    if near:
        return f"In the cache there is {near[0]}. `longctx models` lists what is on this machine."
    preset_names = _nearest(repo.split("/")[1].lower(), list(PRESETS))
    shape = preset_names[0] if preset_names else "qwen3-4b"
    return (
        f"Fetch it where there is a network (`hf download {repo}`), set HF_HOME to the cache that "
        f"holds it, or test the shape alone: --model shape:{shape}."
    )


def _unknown(spec: str) -> UsageError:
    known = ["builtin", "fake", *(f"shape:{name}" for name in PRESETS), *cached_ids()]
    candidates = {name: name for name in known}
    candidates |= {name.split(":")[-1].split("/")[-1]: name for name in known}
    near = _nearest(spec, list(candidates))
    hint = f"Did you mean --model {candidates[near[0]]}? " if near else ""
    return UsageError(
        f"--model {spec} is neither a folder, nor a hub id (owner/name), nor a known name.",
        hint=hint + _where_models_come_from(),
    )


def _folder_hint(path: Path) -> str:
    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
    except OSError:
        return f"{path.parent} cannot be read either."
    near = _nearest(path.name, names)
    return f"Did you mean {path.parent / near[0]}?" if near else _where_models_come_from()


def _where_models_come_from() -> str:
    return "Use builtin, a checkpoint's folder, a hub id, or shape:NAME; see `longctx models`."


def _nearest(name: str, known: list[str]) -> list[str]:
    folded = {k.lower(): k for k in known}
    return [folded[m] for m in difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.5)]


def _say_on_stderr(line: str) -> None:
    print(line, file=sys.stderr)
