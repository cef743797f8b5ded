"""The Hugging Face cache on this machine: find a snapshot, or fetch one when that is possible."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from longctx.errors import ModelError

SMALL_FILES = ["*.json", "*.jinja", "*.txt"]
WEIGHT_FILES = ["*.safetensors"]


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """The cache's folder, by the variables that huggingface_hub reads, in its order."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if environ.get(variable):
            return Path(environ[variable]).expanduser()
    if environ.get("HF_HOME"):
        return Path(environ["HF_HOME"]).expanduser() / "hub"
    base = environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "huggingface" / "hub"


def _repo_folder(repo: str) -> Path:
    return cache_folder() / ("models--" + repo.replace("/", "--"))


def cached_ids() -> list[str]:
    """Hub ids of the models in the cache, sorted."""
    try:
        entries = [e.name for e in cache_folder().iterdir() if e.name.startswith("models--")]
    except OSError:
        return []
    return sorted(name[len("models--") :].replace("--", "/") for name in entries)


def find_in_cache(repo: str, revision: str = "main") -> Path | None:
    """The cached snapshot of `repo` at a branch, tag, or commit (or its first letters), or None."""
    folder = _repo_folder(repo)
    try:
        commit = (folder / "refs" / revision).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        commit = revision
    exact = folder / "snapshots" / commit
    if exact.is_dir():
        return exact
    try:
        snapshots = sorted(p for p in (folder / "snapshots").iterdir() if p.is_dir())
    except OSError:
        return None
    if revision == "main" and not (folder / "refs" / "main").exists():
        return snapshots[0] if len(snapshots) == 1 else None
    starts = [p for p in snapshots if len(revision) >= 7 and p.name.startswith(revision)]
    return starts[0] if len(starts) == 1 else None


def is_offline(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the user switched the hub off (HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE)."""
    switches = (environ.get("HF_HUB_OFFLINE", ""), environ.get("TRANSFORMERS_OFFLINE", ""))
    return any(value.upper() in ("1", "ON", "YES", "TRUE") for value in switches)


def download(
    repo: str,
    revision: str | None,
    weights: bool,
    where: str,
    say: Callable[[str], None],
    hint: str,
) -> Path:
    """Fetch a snapshot into the cache, with huggingface_hub's own progress bars on stderr.

    Args:
        weights: also fetch the safetensors files, not only the configuration and the tokenizer.
        where: why the cache does not do, for messages.
        hint: what to do when the download is impossible.

    Returns:
        The snapshot's folder.

    Raises:
        ModelError: offline, huggingface_hub missing, no such model, no permission, no network.
    """
    if is_offline():
        raise ModelError(f"{repo}: {where}, and HF_HUB_OFFLINE forbids a download.", hint=hint)
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError:
        raise ModelError(
            f"{repo}: {where}, and huggingface_hub is not installed to download it.", hint=hint
        ) from None
    say(f"{repo}: {where}; downloading it to {_repo_folder(repo)}")
    patterns = SMALL_FILES + (WEIGHT_FILES if weights else [])
    try:
        return Path(
            snapshot_download(
                repo, revision=revision, allow_patterns=patterns, cache_dir=cache_folder()
            )
        )
    except GatedRepoError:
        raise ModelError(
            f"{repo} needs its licence accepted before it can be downloaded.",
            hint=f"Accept it on https://huggingface.co/{repo} and run `hf auth login`.",
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        what = f"revision {revision}" if isinstance(error, RevisionNotFoundError) else "such model"
        raise ModelError(f"{repo}: {where}, and the hub has no {what}.", hint=hint) from None
    except LocalEntryNotFoundError:
        raise ModelError(f"{repo}: {where}, and the hub cannot be reached.", hint=hint) from None
    except Exception as error:  # the network fails in many libraries' own ways
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"{repo}: {where}, and the download failed: {reason}", hint=hint) from None
