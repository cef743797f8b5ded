"""A model's name is resolved, or refused with where it was looked for and what is near."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from longctx import hub
from longctx.catalogue import catalogue
from longctx.errors import ModelError, UsageError
from longctx.models import BUILTIN_FOLDER, resolve_model
from longctx.shapes import PRESETS
from longctx.weight_formats import weight_format_of_config

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"], "hidden_size": 64, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "num_hidden_layers": 2, "intermediate_size": 96,
    "vocab_size": 300, "max_position_embeddings": 512,
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no network."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "hf" / "hub"


def checkpoint(folder: Path, weights: bool = True, **changes: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    if weights:
        (folder / "model.safetensors").write_bytes(b"")
    return folder


def snapshot(cache: Path, repo: str, commit: str, ref: str | None = "main") -> Path:
    root = cache / ("models--" + repo.replace("/", "--"))
    if ref:
        (root / "refs").mkdir(parents=True, exist_ok=True)
        (root / "refs" / ref).write_text(commit)
    return checkpoint(root / "snapshots" / commit)


def refused(kind: type[Exception], spec: str, *words: str) -> str:
    with pytest.raises(kind) as caught:
        resolve_model(spec)
    for word in words:
        assert word in caught.value.message, caught.value.message
    assert caught.value.hint
    return str(caught.value.hint)


def test_the_built_in_model_is_the_default() -> None:
    model = resolve_model()
    assert (model.kind, model.folder, model.random_weights) == ("builtin", BUILTIN_FOLDER, False)


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_has_its_name(name: str) -> None:
    model = resolve_model(f"shape:{name}")
    assert (model.kind, model.folder, model.random_weights) == ("shape", None, True)
    assert model.shape is PRESETS[name]
    assert resolve_model(f"shape:{name}@nvfp4").weight_format == "nvfp4"


def test_the_fake_model_has_no_folder() -> None:
    assert resolve_model("fake").folder is None


def test_a_folder_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint(tmp_path / "mine")
    assert resolve_model(str(tmp_path / "mine")).shape.layers == 2
    monkeypatch.chdir(tmp_path)
    assert resolve_model("mine").kind == "folder"
    assert resolve_model("./mine").folder == Path("mine")


def test_a_cached_hub_id_is_found_by_branch_commit_and_prefix(cache: Path) -> None:
    main = snapshot(cache, "org/model", "a" * 40)
    old = snapshot(cache, "org/model", "b" * 40, ref="v1")
    assert resolve_model("org/model").folder == main
    assert resolve_model("org/model").shape.name == "org/model"
    assert resolve_model("org/model@v1").folder == old
    assert resolve_model("org/model@" + "b" * 40).folder == old
    assert resolve_model("org/model@bbbbbbb").folder == old
    refused(ModelError, "org/model@v2", "not in the Hugging Face cache")


def test_a_single_snapshot_without_a_branch_is_the_model(cache: Path) -> None:
    only = snapshot(cache, "org/model", "c" * 40, ref=None)
    assert resolve_model("org/model").folder == only
    snapshot(cache, "org/model", "d" * 40, ref=None)
    refused(ModelError, "org/model", "not in the Hugging Face cache")


def test_offline_says_where_it_looked_and_what_is_there(cache: Path) -> None:
    refused(ModelError, "org/model", str(cache), "HF_HUB_OFFLINE")
    snapshot(cache, "org/models", "a" * 40)
    assert "org/models" in refused(ModelError, "org/model")
    assert "shape:qwen3-8b" in refused(ModelError, "Qwen/Qwen3-8B")


def test_an_unfinished_download_is_not_taken_for_a_model(cache: Path) -> None:
    folder = snapshot(cache, "org/model", "a" * 40)
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "one.safetensors").write_bytes(b"")
    refused(ModelError, "org/model", "incomplete", "two.safetensors")
    assert resolve_model("org/model", need_weights=False).shape.layers == 2
    (folder / "two.safetensors").symlink_to(folder / "blob-that-is-gone")
    refused(ModelError, "org/model", "two.safetensors")


def test_without_permission_to_download_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with pytest.raises(ModelError, match="not in the Hugging Face cache"):
        resolve_model("org/model", allow_download=False)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("RepositoryNotFoundError", "no such model"),
        ("GatedRepoError", "licence"),
        ("LocalEntryNotFoundError", "cannot be reached"),
        ("OSError", "disk full"),
    ],
)
def test_a_failed_download_says_why(
    monkeypatch: pytest.MonkeyPatch, error: str, words: str
) -> None:
    library = pytest.importorskip("huggingface_hub")
    errors = pytest.importorskip("huggingface_hub.errors")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    kind = getattr(errors, error, OSError)

    def fail(*_: object, **__: object) -> str:
        failure = kind.__new__(kind)
        Exception.__init__(failure, "disk full")
        raise failure

    monkeypatch.setattr(library, "snapshot_download", fail)
    said: list[str] = []
    with pytest.raises(ModelError, match=words):
        resolve_model("org/model", say=said.append)
    assert "downloading it to" in said[0]


def test_a_download_is_announced_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = pytest.importorskip("huggingface_hub")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    asked: list[dict] = []

    def fetch(repo: str, **options: object) -> str:
        asked.append({"repo": repo, **options})
        return str(checkpoint(tmp_path / "fetched"))

    monkeypatch.setattr(library, "snapshot_download", fetch)
    model = resolve_model("org/model@v3", say=lambda line: None)
    assert (model.kind, model.folder) == ("hub", tmp_path / "fetched")
    assert (asked[0]["repo"], asked[0]["revision"]) == ("org/model", "v3")
    assert "*.safetensors" in asked[0]["allow_patterns"]
    resolve_model("org/model@v3", need_weights=False, say=lambda line: None)
    assert "*.safetensors" not in asked[1]["allow_patterns"]


@pytest.mark.parametrize(
    ("spec", "near"),
    [
        ("biultin", "builtin"),
        ("qwen3-4b", "shape:qwen3-4b"),
        ("shape:qwen3-4c", "shape:qwen3-4b"),
        ("shape:qwen3-4b@nvfp5", "nvfp4"),
        ("", "builtin"),
    ],
)
def test_a_wrong_name_gets_the_nearest_one(spec: str, near: str) -> None:
    assert near in refused(UsageError, spec)


def test_wrong_paths_say_what_they_are(tmp_path: Path) -> None:
    checkpoint(tmp_path / "model")
    assert str(tmp_path / "model") in refused(UsageError, str(tmp_path / "modle"), "no such folder")
    refused(UsageError, str(tmp_path / "model" / "config.json"), "is a file")
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    refused(ModelError, str(tmp_path / "m.gguf"), "GGUF")
    (tmp_path / "empty").mkdir()
    refused(ModelError, str(tmp_path / "empty"), "config.json")
    checkpoint(tmp_path / "bare", weights=False)
    refused(ModelError, str(tmp_path / "bare"), "no *.safetensors")
    (tmp_path / "bare" / "pytorch_model.bin").write_bytes(b"")
    refused(ModelError, str(tmp_path / "bare"), "pickled")
    (tmp_path / "empty" / "adapter_config.json").write_text("{}")
    refused(ModelError, str(tmp_path / "empty"), "adapter")


@pytest.mark.parametrize(
    ("declared", "found"),
    [
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
        ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}, "nvfp4"),
        ({"quant_method": "compressed-tensors", "format": "float-quantized"}, "fp8"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
        ({"quant_method": "compressed-tensors", "format": "dense"}, None),
        (None, None),
    ],
)
def test_the_declared_weight_format_is_read(declared: dict | None, found: str | None) -> None:
    assert weight_format_of_config({"quantization_config": declared}, "m") == found


@pytest.mark.parametrize(
    "declared",
    [
        {"quant_method": "gptq"},
        {"quant_method": "awq"},
        {"quant_method": "mxfp4"},
        {"quant_method": "compressed-tensors", "format": "pack-quantized"},
        {},
    ],
)
def test_other_quantisations_are_refused_by_name(declared: dict) -> None:
    if not declared:
        assert weight_format_of_config({"quantization_config": declared}, "m") is None
        return
    with pytest.raises(ModelError, match="not supported") as caught:
        weight_format_of_config({"quantization_config": declared}, "m")
    assert str(declared["quant_method"]) in caught.value.message
    assert "longctx quantize" in (caught.value.hint or "")


def test_modelopts_own_file_counts_where_config_is_silent(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m")
    stated = {"quantization": {"quant_algo": "NVFP4", "exclude_modules": ["lm_head"]}}
    (folder / "hf_quant_config.json").write_text(json.dumps(stated))
    assert resolve_model(str(folder)).weight_format == "nvfp4"


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"HF_HUB_CACHE": "/a", "HUGGINGFACE_HUB_CACHE": "/b", "HF_HOME": "/c"}, "/a"),
        ({"HUGGINGFACE_HUB_CACHE": "/b", "HF_HOME": "/c"}, "/b"),
        ({"HF_HOME": "/c", "XDG_CACHE_HOME": "/d"}, "/c/hub"),
        ({"XDG_CACHE_HOME": "/d"}, "/d/huggingface/hub"),
    ],
)
def test_the_cache_lies_where_the_environment_says(environ: dict[str, str], folder: str) -> None:
    assert hub.cache_folder(environ) == Path(folder)


def test_the_catalogue_has_figures_or_a_reason(cache: Path) -> None:
    snapshot(cache, "org/good", "a" * 40)
    bad = snapshot(cache, "org/other", "b" * 40)
    checkpoint(bad, architectures=["MambaForCausalLM"])
    listed = {entry.model: entry for entry in catalogue()}
    four = listed["shape:qwen3-4b"]
    assert (four.kv_bytes_per_token, four.parameters) == (147_456, 4_022_468_096)
    assert four.weight_bytes == 2 * 4_022_468_096
    assert listed["org/good"].kv_bytes_per_token == 2 * 2 * 2 * 16 * 2
    assert listed["org/other"].kv_bytes_per_token is None
    assert "Mamba" in (listed["org/other"].problem or "")
    with pytest.raises(UsageError):
        catalogue("int3")


def test_the_command_lists_without_loading_torch(cache: Path) -> None:
    snapshot(cache, "org/good", "a" * 40)
    code = (
        "import sys; sys.argv = ['longctx', 'models', '--json']\n"
        "from longctx.cli.app import main\n"
        "try: main()\n"
        "finally: assert 'torch' not in sys.modules\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = [entry["model"] for entry in json.loads(run.stdout)]
    assert names[0] == "builtin"
    assert "org/good" in names
    assert len(names) == len(PRESETS) + 2
