"""Whole packed checkpoints: by compressed-tensors, and by our own writer, loaded and compared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from longctx.engine import load_model
from longctx.engine.loading import load_checkpoint, open_checkpoint
from longctx.engine.loading.headers import ITEM_BYTES
from longctx.engine.quant import LinearFactory, formulas
from longctx.engine.quant.shards import Planned, ShardWriter, cut_into_shards
from longctx.engine.quant.write import quantize_checkpoint
from longctx.errors import ModelError, UsageError
from longctx.models import resolve_model
from longctx.weight_formats import weight_format_of_folder

transformers = pytest.importorskip("transformers")
CPU = torch.device("cpu")


def tiny_model(seed: int = 0, hidden: int = 128, intermediate: int = 208) -> torch.nn.Module:
    torch.manual_seed(seed)
    config = transformers.Qwen3Config(
        hidden_size=hidden, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
        num_hidden_layers=2, intermediate_size=intermediate, vocab_size=300,
        tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.Qwen3ForCausalLM(config).to(torch.bfloat16).eval()


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    folder = tmp_path / "plain"
    tiny_model().save_pretrained(folder)
    return folder


def layer_of(folder: Path, names: list[str], columns: int) -> torch.nn.Module:
    """One fused layer of a checkpoint, loaded alone."""
    checkpoint = open_checkpoint(folder)
    sizes = []
    for name in names:
        entries = (checkpoint.entries.get(f"{name}.{s}") for s in ("weight", "weight_packed"))
        sizes.append(next(entry.shape[0] for entry in entries if entry is not None))
    parts = list(zip(names, sizes, strict=True))
    layer = LinearFactory(checkpoint, torch.bfloat16, CPU).make(parts, columns)
    others = set(checkpoint.entries) - {slot.name for slot in layer.slots()}
    load_checkpoint(checkpoint, layer.slots(), ignore=others)
    return layer


def compress(model: torch.nn.Module, preset: str, ignore: list[str], folder: Path) -> None:
    """Quantise with compressed-tensors' own arithmetic, and save with its own configuration."""
    ct = pytest.importorskip("compressed_tensors")
    from compressed_tensors.quantization import (
        QuantizationConfig,
        QuantizationStatus,
        apply_quantization_config,
        preset_name_to_scheme,
    )
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    scheme = preset_name_to_scheme(preset, ["Linear"])
    scheme.input_activations = None
    config = QuantizationConfig(config_groups={"all": scheme}, ignore=ignore)
    apply_quantization_config(model, config)
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is None:
            continue
        weight, arguments = module.weight.detach(), module.quantization_scheme.weights
        if preset == "NVFP4A16":
            whole = generate_gparam(weight.min(), weight.max())
            module.weight_global_scale.data.copy_(whole)
            groups = weight.view(weight.shape[0], -1, 16)
            low, high = groups.amin(-1), groups.amax(-1)
        else:
            whole = None
            tall, wide = (-(-size // 128) for size in weight.shape)
            padded = torch.zeros(tall * 128, wide * 128, dtype=weight.dtype)
            padded[: weight.shape[0], : weight.shape[1]] = weight
            blocks = padded.view(tall, 128, wide, 128)
            low, high = blocks.amin((1, 3)), blocks.amax((1, 3))
        scale, _ = calculate_qparams(low, high, arguments, whole)
        module.weight_scale.data.copy_(scale.view(module.weight_scale.shape))
        module.quantization_status = QuantizationStatus.FROZEN
    compressor = ct.compressors.ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(str(folder))
    compressor.decompress_model(model)


@pytest.mark.parametrize(("preset", "kind"), [("NVFP4A16", "nvfp4"), ("FP8_BLOCK", "fp8")])
def test_a_mixed_checkpoint_by_compressed_tensors_loads_bit_for_bit(
    tmp_path: Path, preset: str, kind: str
) -> None:
    model = tiny_model()
    compress(model, preset, ["lm_head", "re:.*layers.1.mlp.*"], tmp_path)
    assert weight_format_of_folder(tmp_path) == kind
    for index in range(2):
        layer = model.model.layers[index]
        source = f"model.layers.{index}."
        for group, columns in (
            (["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], 128),
            (["self_attn.o_proj"], 128),
            (["mlp.gate_proj", "mlp.up_proj"], 128),
            (["mlp.down_proj"], 208),
        ):
            ours = layer_of(tmp_path, [source + name for name in group], columns)
            theirs = torch.cat([layer.get_submodule(name).weight for name in group])
            excluded = index == 1 and group[0].startswith("mlp")
            found = ours.weight if excluded else ours.dequantize()
            assert torch.equal(found, theirs), (index, group)


def test_a_compressed_checkpoint_gives_the_logits_of_its_dequantised_model(tmp_path: Path) -> None:
    model = tiny_model()
    compress(model, "NVFP4A16", ["lm_head"], tmp_path)
    ids = torch.randint(0, 300, (40,), generator=torch.Generator().manual_seed(2))
    expected = model.float()(ids[None]).logits[0, -1]
    engine = load_model(tmp_path, device="cpu", dtype="float32")
    engine.reserve(64)
    found = engine.extend(ids.tolist())
    # Theirs were rounded to bf16 on the way; ours are exact products in float32.
    assert (found - expected).abs().max() < 0.02 * (expected.max() - expected.min())


FORMATS = [("nvfp4", "modelopt"), ("nvfp4", "compressed-tensors"), ("fp8", "modelopt")]


@pytest.mark.parametrize(("weight_format", "layout"), FORMATS)
def test_what_we_write_we_read(
    plain: Path, tmp_path: Path, weight_format: str, layout: str
) -> None:
    done: list[tuple[int, int]] = []
    report = quantize_checkpoint(
        plain, tmp_path / "new", weight_format, layout, progress=lambda *s: done.append(s)
    )
    assert (report.quantized, done[-1]) == (14, (report.source_bytes, report.source_bytes))
    assert resolve_model(str(report.folder)).weight_format == weight_format
    assert not (tmp_path / "new.partial").exists()
    original = load_file(plain / "model.safetensors")
    names = [f"model.layers.0.self_attn.{n}_proj" for n in "qkv"]
    layer = layer_of(report.folder, names, 128)
    weight = torch.cat([original[f"{n}.weight"] for n in names])
    error = (layer.dequantize() - weight).float().norm() / weight.float().norm()
    assert error < (0.11 if weight_format == "nvfp4" else 0.03)
    kept = load_file(report.folder / "model.safetensors")
    for name in ("lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"):
        assert torch.equal(kept[name], original[name])
    engine = load_model(report.folder, device="cpu", dtype="float32")
    engine.reserve(8)
    assert engine.extend([1, 2, 3]).isfinite().all()


def test_compressed_tensors_reads_what_we_write(plain: Path, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors.nvfp4 import NVFP4PackedCompressor
    from compressed_tensors.quantization import QuantizationConfig

    folder = quantize_checkpoint(plain, tmp_path / "new", "nvfp4", "compressed-tensors").folder
    stated = json.loads((folder / "config.json").read_text())["quantization_config"]
    config = QuantizationConfig.model_validate(stated)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.down_proj"
    state = {k.removeprefix(name + "."): v for k, v in tensors.items() if k.startswith(name)}
    theirs = NVFP4PackedCompressor.decompress(state, config.config_groups["group_0"])["weight"]
    assert torch.equal(layer_of(folder, [name], 208).dequantize(), theirs)


def test_fused_projections_share_one_global_scale(plain: Path, tmp_path: Path) -> None:
    folder = quantize_checkpoint(plain, tmp_path / "new", "nvfp4").folder
    tensors = load_file(folder / "model.safetensors")
    source = load_file(plain / "model.safetensors")
    for group in (["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
                  ["mlp.gate_proj", "mlp.up_proj"]):  # fmt: skip
        names = [f"model.layers.0.{name}.weight" for name in group]
        amax = torch.stack([source[name].float().abs().max() for name in names]).max()
        for name in names:
            assert tensors[f"{name}_scale_2"] == amax / (6 * 448)


def test_excluded_modules_stay_and_are_listed(plain: Path, tmp_path: Path) -> None:
    report = quantize_checkpoint(
        plain, tmp_path / "new", "nvfp4", exclude=["model.layers.0.*", "*.down_proj"]
    )
    assert report.quantized == 6
    config = json.loads((report.folder / "config.json").read_text())
    ignored = config["quantization_config"]["ignore"]
    assert "model.layers.0.self_attn.q_proj" in ignored
    assert "model.layers.1.mlp.down_proj" in ignored
    assert "model.layers.1.mlp.up_proj" not in ignored
    engine = load_model(report.folder, device="cpu", dtype="float32")
    engine.reserve(8)
    assert engine.extend([5]).isfinite().all()


def test_sizes_that_nvfp4_cannot_pack_name_the_flag(tmp_path: Path) -> None:
    tiny_model(intermediate=200).save_pretrained(tmp_path / "odd")
    with pytest.raises(ModelError, match="200 columns") as caught:
        quantize_checkpoint(tmp_path / "odd", tmp_path / "new", "nvfp4")
    assert "--exclude" in (caught.value.hint or "")
    assert quantize_checkpoint(tmp_path / "odd", tmp_path / "new", "fp8").quantized == 14


def test_a_destination_that_exists_or_a_packed_source_is_refused(
    plain: Path, tmp_path: Path
) -> None:
    folder = quantize_checkpoint(plain, tmp_path / "new", "fp8").folder
    with pytest.raises(UsageError, match="exists already"):
        quantize_checkpoint(plain, folder, "fp8")
    with pytest.raises(ModelError, match="fp8 weights already"):
        quantize_checkpoint(folder, tmp_path / "again", "fp8")


def test_a_weight_that_is_no_number_stops_the_writer_and_leaves_nothing(tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = float("nan")
    model.save_pretrained(tmp_path / "bad")
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.weight.* not finite"):
        quantize_checkpoint(tmp_path / "bad", tmp_path / "new", "nvfp4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad"]


def test_shards_are_cut_between_weights_and_read_by_safetensors(tmp_path: Path) -> None:
    groups = [
        [Planned(f"w{i}", "BF16", (3, 5)), Planned(f"w{i}_scale", "F32", ())] for i in range(5)
    ]
    shards = cut_into_shards(groups, limit=70)
    assert [len(shard) for shard in shards] == [4, 4, 2]
    writer = ShardWriter(tmp_path, shards)
    for i in range(5):
        writer.write(f"w{i}", torch.full((3, 5), i, dtype=torch.bfloat16))
        writer.write(f"w{i}_scale", torch.tensor(float(i)))
    writer.finish()
    checkpoint = open_checkpoint(tmp_path)
    assert len(checkpoint.entries) == 10
    for name, entry in checkpoint.entries.items():
        with safe_open(entry.file, "pt") as file:
            assert torch.equal(
                file.get_tensor(name).float().unique(), torch.tensor([float(name[1])])
            )
        assert entry.nbytes % ITEM_BYTES[entry.dtype] == 0


def test_a_writer_refuses_what_was_not_planned(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, [[Planned("w", "F32", (2,))]])
    with pytest.raises(ValueError, match="is not"):
        writer.write("w", torch.zeros(3))
    with pytest.raises(ValueError, match="was not written"):
        writer.finish()
    writer.close()


def test_the_command_writes_a_checkpoint_and_says_so(plain: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "longctx", "quantize", str(plain), str(tmp_path / "new")]
    run = subprocess.run(
        [*command, "--format", "fp8"], capture_output=True, text=True, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )  # fmt: skip
    assert "14 matrices packed as fp8" in run.stdout
    again = subprocess.run(
        [*command, "--format", "fp8", "--layout", "modelopt"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert again.returncode == 2
    assert "--layout" in again.stderr
    assert "Traceback" not in again.stderr


def test_random_packed_weights_have_the_spread_of_plain_ones() -> None:
    from longctx.engine.loading import fill_random

    for kind in ("nvfp4", "fp8"):
        layer = LinearFactory(None, torch.float32, CPU, kind).make([("o", 256)], 512)
        fill_random(layer.slots())
        assert abs(float(layer.dequantize().std()) - 0.02) < 0.001
    assert formulas.NVFP4_GROUP == 16


def tiny_family(name: str) -> torch.nn.Module:
    torch.manual_seed(1)
    sizes = {
        "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
        "num_hidden_layers": 2, "intermediate_size": 96, "vocab_size": 200,
        "tie_word_embeddings": True,
    }  # fmt: skip
    if name == "Qwen3Moe":
        sizes |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48,
                  "head_dim": 16}  # fmt: skip
    config = getattr(transformers, f"{name}Config")(**sizes)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith(".bias"):
            torch.nn.init.normal_(parameter)
    return model.eval()


@pytest.mark.parametrize("family", ["Qwen2", "Qwen3Moe", "Llama"])
@pytest.mark.parametrize("weight_format", ["nvfp4", "fp8"])
def test_biases_experts_and_routers_survive_packing(
    tmp_path: Path, family: str, weight_format: str
) -> None:
    """The packed copy computes what the plain engine computes with the dequantised weights."""
    model = tiny_family(family)
    model.save_pretrained(tmp_path / "plain")
    report = quantize_checkpoint(tmp_path / "plain", tmp_path / "packed", weight_format)
    packed = load_model(report.folder, device="cpu", dtype="float32")
    plain = load_model(tmp_path / "plain", device="cpu", dtype="float32")
    for ours, theirs in zip(packed.model.linears(), plain.model.linears(), strict=True):
        assert theirs.weight.shape == (ours.out_features, ours.in_features)
        theirs.weight.data.copy_(ours.dequantize())
    ids = list(range(20, 50))
    found, expected = [], []
    for engine, logits in ((packed, found), (plain, expected)):
        engine.reserve(64)
        logits.append(engine.extend(ids))
        logits.append(engine.extend([7]))
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))
