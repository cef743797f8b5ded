"""How a model is cut for the one-launch decoder: sizes that the kernel is compiled with.

Torch-free arithmetic, so that it is tested where there is no GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from longctx.shapes import ModelShape

WARPS = 8
PRODUCERS = 4  # warps, beside those
# stages under way: enough for the memory, and no queue in front of it
WINDOW = 3
PACKED_WINDOW = 6  # they are smaller
TEAMS = 4  # of warps; the number of stages is a multiple of it
STAGE_BYTES = 16_896  # 16 rows of 512 bf16 columns, or 16 KiB of cache; and gaps or scales
GAP_BYTES = 64  # between every second row and the next
STATIC_SHARED = 5_376  # what the kernel takes besides stages and the vector; and 512 a warp
MAX_SPLITS = 32
MAX_GROUP = 8
MOST_IDS = 1 << 20
PAIR_TILE = 8
TILE = 16
KV_MODES = {"bfloat16": 0, "int8": 1, "fp8": 2}


class NotPossible(Exception):
    """This model cannot be decoded in one launch; the message says why."""


@dataclass(frozen=True)
class Machine:
    """What counts of a GPU.

    Args:
        processors: multiprocessors.
        shared_bytes: shared memory that one block may have.
    """

    processors: int
    shared_bytes: int


@dataclass(frozen=True)
class Cut:
    """A model cut for a GPU.

    Args:
        defines: what the kernel is compiled with.
        shared_bytes: dynamic shared memory of a program.
        programs: one for each multiprocessor.
        threads: of a program.
        splits: of each KV head.
    """

    defines: dict[str, int]
    shared_bytes: int
    programs: int
    threads: int
    splits: int


def height(rows: int, tile: int) -> int:
    """Rows of a tile when `rows` are cut into as few equal tiles as possible."""
    tiles = -(-rows // tile)
    return -(-rows // tiles) if tiles else 1


def slice_columns(columns: int, rows: int, packed: bool) -> int:
    """Columns of one stage: as many as fit for tiles of `rows`, in equal parts.

    Packed slices are multiples of 256, so that their scales (one byte for 16 columns) are copied in
    pieces of 16 bytes; others of 128.
    """
    unit = 256 if packed else 128
    most = STAGE_BYTES - GAP_BYTES * (TILE // 2 if packed else rows // 2)
    # packed: scales lie behind the place of 16 rows of values
    best = 16 * most // (8 * TILE + rows) if packed else most // (2 * rows)
    parts = -(-columns // max(best // unit * unit, unit))
    return -(-columns // parts // unit) * unit


def cut(shape: ModelShape, kv_dtype: str, packed: bool, divide: bool, machine: Machine) -> Cut:
    """The sizes for this model on this GPU.

    Args:
        packed: NVFP4 weights (else bf16).
        divide: by the global scale of NVFP4 weights instead of multiplying.

    Raises:
        NotPossible: with the reason.
    """
    group = shape.query_heads // shape.kv_heads
    if shape.experts:
        raise NotPossible("the model has experts")
    if kv_dtype not in KV_MODES:
        raise NotPossible(f"the cache is {kv_dtype}")
    if group > MAX_GROUP:
        raise NotPossible(f"{group} query heads share a KV head")
    if shape.head_dim not in (64, 128) or (shape.head_dim == 64 and KV_MODES[kv_dtype]):
        raise NotPossible(f"heads of {shape.head_dim} with a {kv_dtype} cache")
    if shape.vocab >= MOST_IDS:
        raise NotPossible(f"the vocabulary has {shape.vocab:,} ids")
    attended = shape.query_heads * shape.head_dim
    widths = (shape.hidden, attended, shape.intermediate)
    if any(width % 256 for width in widths):
        raise NotPossible("sizes are not multiples of 256")
    programs = machine.processors
    if shape.kv_heads > programs:
        raise NotPossible(f"{shape.kv_heads} KV heads on {programs} multiprocessors")
    splits = min(programs // shape.kv_heads, MAX_SPLITS)
    work = max(2 * max(widths), WARPS * group * shape.head_dim * 4)
    work = -(-work // 128) * 128
    stages = (
        (machine.shared_bytes - STATIC_SHARED - 512 * WARPS - work) // STAGE_BYTES // TEAMS * TEAMS
    )
    if not stages:
        raise NotPossible(f"{machine.shared_bytes:,} bytes of shared memory are too few")
    qkv = attended + 2 * shape.kv_heads * shape.head_dim
    defines = {
        "HIDDEN": shape.hidden,
        "LAYERS": shape.layers,
        "HEADS": shape.query_heads,
        "KV_HEADS": shape.kv_heads,
        "HEAD_DIM": shape.head_dim,
        "INTER": shape.intermediate,
        "VOCAB": shape.vocab,
        "QKV_ROWS": qkv,
        "PROGRAMS": programs,
        "SPLITS": splits,
        "WARPS": WARPS,
        "PRODUCERS": PRODUCERS,
        "WINDOW": min(PACKED_WINDOW if packed else WINDOW, stages),
        "STAGES": stages,
        "STAGE_BYTES": STAGE_BYTES,
        "KV_MODE": KV_MODES[kv_dtype],
        "WEIGHT_FORMAT": int(packed),
        "DIVIDE": int(divide),
    }
    matrices = {
        "QKV": (shape.hidden, qkv, TILE, packed),
        "O": (attended, shape.hidden, TILE, packed),
        "GATE_UP": (shape.hidden, shape.intermediate, PAIR_TILE, packed),
        "DOWN": (shape.intermediate, shape.hidden, TILE, packed),
        "HEAD": (shape.hidden, shape.vocab, TILE, False),
    }
    for name, (columns, rows, tile, is_packed) in matrices.items():
        # of all programs: some have a row less, and with it maybe a lower or a higher tile
        mine = {rows // programs, -(-rows // programs)}
        tallest = TILE if tile == PAIR_TILE else max(height(n, tile) for n in mine)
        defines[f"{name}_TILE"] = tile
        defines[f"{name}_SLICE"] = slice_columns(columns, tallest, is_packed)
    threads = (WARPS + PRODUCERS) * 32
    return Cut(defines, stages * STAGE_BYTES + work, programs, threads, splits)
