"""Packed layers load bit for bit from every public layout, and multiply like their weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from longctx.engine.loading import load_checkpoint, open_checkpoint
from longctx.engine.quant import LinearFactory, formulas, packed
from longctx.engine.quant.dense import Linear, SplitLinear
from longctx.engine.quant.fp8 import Fp8Linear
from longctx.engine.quant.nvfp4 import Nvfp4Linear
from longctx.errors import ModelError
from tests.engine.quant.kernel_cases import packed_fp8, packed_nvfp4

CPU = torch.device("cpu")


def layer_from(
    folder: Path,
    tensors: dict[str, torch.Tensor],
    parts: list[tuple[str, int]],
    columns: int,
    dtype: torch.dtype = torch.float32,
    bias: bool = False,
) -> Linear:
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    layer = LinearFactory(checkpoint, dtype, CPU).make(parts, columns, bias)
    load_checkpoint(checkpoint, layer.slots())
    return layer


def modelopt(name: str, n: int, k: int, whole: float, seed: int) -> dict[str, torch.Tensor]:
    bits, scale, _ = packed_nvfp4(n, k, False, seed)
    return {
        f"{name}.weight": bits,
        f"{name}.weight_scale": scale,
        f"{name}.weight_scale_2": torch.tensor(whole),
        f"{name}.input_scale": torch.tensor(0.5),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_modelopt_layer_is_the_formula_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = modelopt("o", 24, 64, 0.0123, 3)
    layer = layer_from(tmp_path, tensors, [("o", 24)], 64, dtype)
    assert isinstance(layer, Nvfp4Linear)
    values = torch.empty(24, 64)
    table = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]
    scale = tensors["o.weight_scale"].float() * tensors["o.weight_scale_2"]
    for row in range(24):
        for column in range(64):
            byte = int(tensors["o.weight"][row, column // 2])
            code = byte >> 4 if column % 2 else byte & 15
            values[row, column] = torch.tensor(table[code]) * scale[row, column // 16]
    assert torch.equal(layer.dequantize(), values.to(dtype))


def test_the_dividing_layout_divides(tmp_path: Path) -> None:
    """A product with the rounded reciprocal differs from the quotient in the last bit."""
    bits, scale, _ = packed_nvfp4(32, 128, True, 4)
    whole = torch.tensor([2688 / 0.11])
    tensors = {"o.weight_packed": bits, "o.weight_scale": scale, "o.weight_global_scale": whole}
    layer = layer_from(tmp_path, tensors, [("o", 32)], 128)
    spread = (scale.float() / whole).repeat_interleave(16, dim=1)
    assert torch.equal(layer.dequantize(), formulas.nvfp4_values(bits) * spread)
    reciprocal = (scale.float() * (1 / whole)).repeat_interleave(16, dim=1)
    assert not torch.equal(layer.dequantize(), formulas.nvfp4_values(bits) * reciprocal)


def test_fused_matrices_keep_their_own_global_scales(tmp_path: Path) -> None:
    parts = [("q", 32), ("k", 16), ("v", 16)]
    wholes = {"q": 0.5, "k": 0.0007, "v": 3.3}
    tensors: dict[str, torch.Tensor] = {}
    for seed, (name, rows) in enumerate(parts):
        tensors |= modelopt(name, rows, 48, wholes[name], seed)
    layer = layer_from(tmp_path, tensors, parts, 48)
    singly = []
    for name, rows in parts:
        whole = tensors[f"{name}.weight_scale_2"].expand(rows)
        bits, scale = tensors[f"{name}.weight"], tensors[f"{name}.weight_scale"]
        singly.append(formulas.nvfp4_dequantize(bits, scale, whole, False))
    assert torch.equal(layer.dequantize(), torch.cat(singly))


def test_nvfp4_stays_packed_in_memory(tmp_path: Path) -> None:
    layer = layer_from(tmp_path, modelopt("o", 64, 256, 1.0, 0), [("o", 64)], 256)
    assert layer.weight_bytes == 64 * 256 // 2 + 64 * 256 // 16 + 64 * 4


@pytest.mark.parametrize(
    ("n", "k", "scale_name", "kind"),
    [
        (200, 300, "weight_scale_inv", "block"),
        (128, 256, "weight_scale", "block"),
        (200, 300, "weight_scale", "row"),
        (200, 300, "weight_scale", "rows"),
        (200, 300, "weight_scale", "matrix"),
        (96, 64, "weight_scale_inv", "block"),
    ],
)
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16])
def test_fp8_scales_per_block_row_or_matrix(
    tmp_path: Path, n: int, k: int, scale_name: str, kind: str, scale_dtype: torch.dtype
) -> None:
    weight, grid, _ = packed_fp8(n, k, 128)
    scale = {
        "block": grid,
        "row": torch.rand(n, 1),
        "rows": torch.rand(n),
        "matrix": torch.tensor(0.37),
    }[kind].to(scale_dtype)
    tensors = {"o.weight": weight, f"o.{scale_name}": scale}
    layer = layer_from(tmp_path, tensors, [("o", n)], k, torch.bfloat16)
    assert isinstance(layer, Fp8Linear)
    if kind == "block":
        spread = scale.float()[torch.arange(n) // 128][:, torch.arange(k) // 128]
    else:
        spread = scale.float().reshape(-1, 1).expand(-1, k)
    assert torch.equal(layer.dequantize(), (weight.float() * spread).bfloat16())


def test_fused_fp8_matrices_start_their_blocks_afresh(tmp_path: Path) -> None:
    """130 rows are two block rows; the next matrix does not share the second one."""
    parts = [("q", 130), ("k", 40)]
    tensors, whole = {}, []
    for seed, (name, rows) in enumerate(parts):
        weight, grid, _ = packed_fp8(rows, 256, 128, seed)
        tensors |= {f"{name}.weight": weight, f"{name}.weight_scale_inv": grid}
        whole.append(formulas.fp8_dequantize(weight, grid, (128, 128)))
    layer = layer_from(tmp_path, tensors, parts, 256)
    assert torch.equal(layer.dequantize(), torch.cat(whole))


@pytest.mark.parametrize("rows_at_once", [1, 7, 64, 1000])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["nvfp4", "fp8"])
def test_a_layer_multiplies_like_its_weights_however_small_the_scratch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_at_once: int, bias: bool, kind: str
) -> None:
    monkeypatch.setattr(packed, "CPU_SCRATCH_BYTES", rows_at_once * 64 * 4)
    monkeypatch.setattr(packed, "CHUNK_ELEMENTS", 100)
    if kind == "nvfp4":
        tensors = modelopt("o", 150, 64, 0.01, 5)
    else:
        weight, grid, _ = packed_fp8(150, 64, 128)
        tensors = {"o.weight": weight, "o.weight_scale_inv": grid}
    if bias:
        tensors["o.bias"] = torch.randn(150)
    layer = layer_from(tmp_path, tensors, [("o", 150)], 64, bias=bias)
    x = torch.randn(2, 5, 64)
    expected = torch.nn.functional.linear(x, layer.dequantize(), tensors.get("o.bias"))
    assert torch.allclose(layer(x), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert layer(x[:, :0]).shape == (2, 0, 150)


def test_the_scratch_is_shared_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "CPU_SCRATCH_BYTES", 100_000)
    factory = LinearFactory(None, torch.float32, CPU, "nvfp4")
    factory.make([("a", 64)], 128)
    assert factory.scratch_bytes == 64 * 128 * 4
    factory.make([("b", 4096)], 256)
    assert factory.scratch_bytes == 97 * 256 * 4
    factory.make([("c", 32)], 64)
    assert factory.scratch_bytes == 97 * 256 * 4


def test_a_mixed_layer_computes_each_part_in_its_own_format(tmp_path: Path) -> None:
    weight, grid, _ = packed_fp8(16, 64, 128)
    dense = torch.randn(8, 64)
    tensors = {
        **modelopt("q", 32, 64, 0.01, 1),
        "k.weight": dense,
        "v.weight": weight,
        "v.weight_scale_inv": grid,
    }
    layer = layer_from(tmp_path, tensors, [("q", 32), ("k", 8), ("v", 16)], 64)
    assert isinstance(layer, SplitLinear)
    x = torch.randn(3, 64)
    whole = torch.full((32,), 0.01)
    q = formulas.nvfp4_dequantize(tensors["q.weight"], tensors["q.weight_scale"], whole, False)
    v = formulas.fp8_dequantize(weight, grid, (128, 128))
    assert torch.allclose(layer(x), x @ torch.cat([q, dense, v]).T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"o.qweight": torch.zeros(8, 64, dtype=torch.int32)}, "GPTQ"),
        ({"o.weight_packed": torch.zeros(8, 8, dtype=torch.int32)}, "integers"),
        ({"o.weight_packed": torch.zeros(8, 32, dtype=torch.uint8)}, "MXFP4"),
        ({"o.weight": torch.zeros(8, 64, dtype=torch.int8)}, "I8"),
        ({"o.weight": torch.zeros(8, 32, dtype=torch.uint8)}, "U8"),
        ({"o.weight": torch.zeros(8, 64).to(torch.float8_e4m3fn)}, "no weight_scale"),
        (
            {
                "o.weight": torch.zeros(8, 64).to(torch.float8_e4m3fn),
                "o.weight_scale_inv": torch.ones(3, 5),
            },
            "fits neither",
        ),
    ],
)
def test_formats_that_are_not_supported_are_named(
    tmp_path: Path, tensors: dict[str, torch.Tensor], words: str
) -> None:
    with pytest.raises(ModelError, match=words):
        layer_from(tmp_path, tensors, [("o", 8)], 64)


def broken(tmp_path: Path, name: str, tensor: torch.Tensor) -> str:
    with pytest.raises(ModelError) as caught:
        layer_from(tmp_path, {**modelopt("o", 8, 64, 1.0, 0), name: tensor}, [("o", 8)], 64)
    return caught.value.message


def test_damaged_packed_tensors_are_refused(tmp_path: Path) -> None:
    assert "[8, 31]" in broken(tmp_path, "o.weight", torch.zeros(8, 31, dtype=torch.uint8))
    nan = torch.full((8, 4), float("nan")).to(torch.float8_e4m3fn)
    assert "o.weight_scale holds NaN" in broken(tmp_path, "o.weight_scale", nan)
    assert "[2]" in broken(tmp_path, "o.weight_scale_2", torch.ones(2))
    assert "o.weight_scale_2 holds NaN" in broken(
        tmp_path, "o.weight_scale_2", torch.tensor(float("nan"))
    )
    assert "o.weight_scale is F32" in broken(tmp_path, "o.weight_scale", torch.ones(8, 4))


def test_a_global_scale_of_zero_that_divides_is_refused(tmp_path: Path) -> None:
    bits, scale, _ = packed_nvfp4(8, 64, True)
    tensors = {
        "o.weight_packed": bits,
        "o.weight_scale": scale,
        "o.weight_global_scale": torch.zeros(1),
    }
    with pytest.raises(ModelError, match="weight_global_scale is 0"):
        layer_from(tmp_path, tensors, [("o", 8)], 64)


def test_the_arithmetic_of_a_layer_is_small_beside_its_activations() -> None:
    """No allocation of a forward pass is larger than its output, and none is kept."""
    factory = LinearFactory(None, torch.bfloat16, CPU, "nvfp4")
    layer = factory.make([("o", 1024)], 2048)
    for slot in layer.slots():
        slot.target.view(torch.uint8).fill_(0)
    x = torch.zeros(2048, 2048, dtype=torch.bfloat16)
    profile = torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, record_shapes=True
    )
    with profile:
        out = layer(x)
    largest = max(abs(event.self_cpu_memory_usage) for event in profile.events())
    assert largest <= max(2 * out.nbytes, 5 * packed.CHUNK_ELEMENTS * 4)


def test_a_row_is_written_where_it_is_wanted_and_added_to_what_is_there(tmp_path: Path) -> None:
    layer = layer_from(tmp_path, modelopt("o", 24, 64, 0.01, 5), [("o", 24)], 64)
    row, stream = torch.randn(64), torch.randn(24)
    expected = layer(row[None])[0]
    out = torch.zeros(24)
    layer.write_to(row, out)
    assert torch.equal(out, expected)
    before = stream.clone()
    layer.write_to(row, stream, residual=stream)
    assert torch.equal(stream, expected + before)
