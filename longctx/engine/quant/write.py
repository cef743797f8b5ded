"""Makes an FP8 or NVFP4 copy of a plain checkpoint, one weight in memory at a time."""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from longctx.engine.loading.headers import INDEX_NAME, Checkpoint, Entry, open_checkpoint
from longctx.engine.loading.load import Progress
from longctx.engine.loading.stream import read_tensor
from longctx.engine.quant import formulas
from longctx.engine.quant.configs import quantization_files
from longctx.engine.quant.shards import Planned, ShardWriter, cut_into_shards
from longctx.errors import ModelError, UsageError
from longctx.shapes import shape_from_folder
from longctx.units import format_bytes
from longctx.weight_formats import WEIGHT_FORMATS, weight_format_of_folder

LAYOUTS = ("modelopt", "compressed-tensors")
QUANTISED = re.compile(r".*\.(q|k|v|o|gate|up|down)_proj\.weight")
FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
CHUNK_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class QuantizeReport:
    """What was written.

    Args:
        quantized: weights that were packed; kept: tensors that were copied.
        source_bytes, written_bytes: of all tensors.
    """

    folder: Path
    quantized: int
    kept: int
    source_bytes: int
    written_bytes: int


def quantize_checkpoint(
    source: Path,
    destination: Path,
    weight_format: str,
    layout: str = "modelopt",
    exclude: Sequence[str] = (),
    progress: Progress | None = None,
) -> QuantizeReport:
    """Write a packed copy of the checkpoint in `source` to `destination`.

    Every projection of every layer (attention and MLP, also of experts) is packed; embeddings, the
    head, norms, biases and routers stay. Projections that engines fuse (q, k, v; gate, up) get one
    global NVFP4 scale. Files are written to a folder beside the destination that takes its name
    when all is there, so a destination that exists is whole.

    Args:
        weight_format: "fp8" (128x128 blocks, `weight_scale_inv`) or "nvfp4".
        layout: of nvfp4: "modelopt" or "compressed-tensors".
        exclude: patterns (as of a shell) of module names that stay as they are.
        progress: gets (source bytes done, in all).

    Raises:
        UsageError: unknown format or layout, a destination that exists, or a full disk.
        ModelError: the source cannot be read, or is packed already.
    """
    _check_choice("format", weight_format, WEIGHT_FORMATS)
    _check_choice("layout", layout, LAYOUTS)
    shape_from_folder(source)  # refuses what longctx could not run afterwards
    if weight_format_of_folder(source) is not None:
        raise ModelError(
            f"{source} holds {weight_format_of_folder(source)} weights already.",
            hint="Quantise from the bf16 checkpoint.",
        )
    checkpoint = open_checkpoint(source)
    packer = _Packer(checkpoint, weight_format, layout, exclude)
    groups = [packer.plan(entry) for entry in packer.entries]
    written = sum(tensor.nbytes for group in groups for tensor in group)
    _check_destination(source, destination, written)
    partial = destination.with_name(destination.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    writer = ShardWriter(partial, cut_into_shards(groups))
    try:
        done = 0
        with torch.no_grad():
            for entry in packer.entries:
                for name, tensor in packer.tensors(entry):
                    writer.write(name, tensor)
                done += entry.nbytes
                if progress is not None:
                    progress(done, checkpoint.nbytes)
        writer.finish()
        _copy_small_files(source, partial)
        for name, content in quantization_files(
            checkpoint.config, weight_format, layout, packer.kept_modules()
        ).items():
            (partial / name).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
        partial.rename(destination)
    except OSError as error:
        raise UsageError(f"{partial} cannot be written: {error.strerror}.") from None
    finally:
        writer.close()
        shutil.rmtree(partial, ignore_errors=True)
    count = sum(packer.is_packed(entry) for entry in packer.entries)
    return QuantizeReport(
        destination, count, len(packer.entries) - count, checkpoint.nbytes, written
    )


class _Packer:
    """Decides which tensors are packed, and packs them."""

    def __init__(
        self, checkpoint: Checkpoint, weight_format: str, layout: str, exclude: Sequence[str]
    ) -> None:
        self.entries = sorted(checkpoint.entries.values(), key=lambda e: (e.file, e.offset))
        self._by_name = checkpoint.entries
        self._fp8 = weight_format == "fp8"
        self._divide = layout == "compressed-tensors"
        self._exclude = exclude
        self._amax: dict[str, torch.Tensor] = {}
        for entry in self.entries:
            wide = entry.shape[1] if len(entry.shape) == 2 else 0
            if not self._fp8 and self.is_packed(entry) and wide % formulas.NVFP4_GROUP:
                raise ModelError(
                    f"{entry.name} has {wide} columns, not a multiple of {formulas.NVFP4_GROUP}.",
                    hint=f"Keep it as it is: --exclude '{entry.name.removesuffix('.weight')}'",
                )

    def is_packed(self, entry: Entry) -> bool:
        module = entry.name.removesuffix(".weight")
        return (
            QUANTISED.fullmatch(entry.name) is not None
            and len(entry.shape) == 2
            and not any(fnmatch.fnmatchcase(module, pattern) for pattern in self._exclude)
        )

    def kept_modules(self) -> list[str]:
        """Names of linear modules that stay plain."""
        kept = [e.name.removesuffix(".weight") for e in self.entries
                if QUANTISED.fullmatch(e.name) and not self.is_packed(e)]  # fmt: skip
        routers = [e.name.removesuffix(".weight") for e in self.entries
                   if e.name.endswith(".mlp.gate.weight")]  # fmt: skip
        return ["lm_head", *routers, *kept]

    def plan(self, entry: Entry) -> list[Planned]:
        """The tensors that this entry becomes."""
        if not self.is_packed(entry):
            return [Planned(entry.name, entry.dtype, entry.shape)]
        name, (rows, columns) = entry.name, entry.shape
        if self._fp8:
            blocks = tuple(-(-size // formulas.FP8_BLOCK) for size in entry.shape)
            return [
                Planned(name, "F8_E4M3", entry.shape),
                Planned(f"{name}_scale_inv", "F32", blocks),
            ]
        packed, whole, shape = (
            (f"{name}_packed", f"{name}_global_scale", (1,))
            if self._divide
            else (name, f"{name}_scale_2", ())
        )
        return [
            Planned(packed, "U8", (rows, columns // 2)),
            Planned(f"{name}_scale", "F8_E4M3", (rows, columns // formulas.NVFP4_GROUP)),
            Planned(whole, "F32", shape),
        ]

    def tensors(self, entry: Entry) -> Iterator[tuple[str, torch.Tensor]]:
        """The planned tensors, filled."""
        weight = read_tensor(entry)
        if not self.is_packed(entry):
            yield entry.name, weight
            return
        if not torch.isfinite(weight.sum(dtype=torch.float32)) and not weight.isfinite().all():
            raise ModelError(
                f"{entry.file}: {entry.name} holds values that are not finite.",
                hint="The checkpoint is damaged or was saved from a diverged run.",
            )
        names = [planned.name for planned in self.plan(entry)]
        # Whole blocks of rows, so that chunks do not change a scale.
        step = max(1, CHUNK_ELEMENTS // entry.shape[1] // formulas.FP8_BLOCK) * formulas.FP8_BLOCK
        chunks = weight.split(step)
        if self._fp8:
            pairs = [formulas.fp8_quantize(chunk) for chunk in chunks]
            tail: list[torch.Tensor] = []
        else:
            whole = formulas.nvfp4_global_scale(self._shared_amax(entry, weight), self._divide)
            pairs = [formulas.nvfp4_quantize(chunk, whole, self._divide) for chunk in chunks]
            tail = [whole.view(1) if self._divide else whole]
        joined = [torch.cat(list(part)) for part in zip(*pairs, strict=True)]
        yield from zip(names, [*joined, *tail], strict=True)

    def _shared_amax(self, entry: Entry, weight: torch.Tensor) -> torch.Tensor:
        self._amax.setdefault(entry.name, formulas.nvfp4_amax(weight))
        for name in _fused_with(entry.name):
            other = self._by_name.get(name)
            if other is not None and self.is_packed(other) and name not in self._amax:
                self._amax[name] = formulas.nvfp4_amax(read_tensor(other))
        known = [self._amax[name] for name in _fused_with(entry.name) if name in self._amax]
        return torch.stack(known).amax()


def _fused_with(name: str) -> list[str]:
    parent, projection = name.removesuffix(".weight").rsplit(".", 1)
    for group in FUSED:
        if projection in group:
            return [f"{parent}.{member}.weight" for member in group]
    return [name]


def _check_choice(what: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UsageError(f"--{what} {value}: unknown.", hint=f"Choose from: {', '.join(known)}.")


def _check_destination(source: Path, destination: Path, nbytes: int) -> None:
    if destination.exists():
        raise UsageError(
            f"{destination} exists already.", hint="Give a new folder, or remove that one first."
        )
    parent = destination.resolve().parent
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if free < nbytes:
        raise UsageError(
            f"{destination} needs {format_bytes(nbytes)}, and {parent} has {format_bytes(free)} "
            "free.",
            hint="Give a folder on a larger disk.",
        )


def _copy_small_files(source: Path, folder: Path) -> None:
    for path in sorted(source.iterdir()):
        weights = path.suffix in (".safetensors", ".bin", ".pth", ".gguf")
        if path.is_file() and not weights and path.name != INDEX_NAME:
            shutil.copyfile(path, folder / path.name)
