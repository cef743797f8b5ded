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
TEAMS = 4  # of warps; the number of stages is a multiple of it
STEP = 128  # columns of packed weights that a warp takes at once
LOW_STEP = 256  # and of low tiles
STAGE_BYTES = 16_896  # 16 rows of 512 bf16 columns, or 16 KiB of cache; and gaps or scales
GAP_BYTES = 64  # between every second row and the next
STATIC_SHARED = 5_376  # what the kernel takes besides stages and the vector; and 512 a warp
MAX_SPLITS = 32
MAX_GROUP = 8
MOST_IDS = 1 << 20
PAIR_TILE = 8
LOW_TILE = 8
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


def slice_columns(columns: int, rows: int) -> int:
    """Columns of bf16 weights in one stage: as many as fit for tiles of `rows`, in equal parts."""
    best = (STAGE_BYTES - GAP_BYTES * (rows // 2)) // (2 * rows)
    parts = -(-columns // max(best // 128 * 128, 128))
    return -(-columns // parts // 128) * 128


def is_low(rows: int) -> bool:
    """Whether packed weights of a program with so many rows are cut into low tiles of 8 rows.

    A low tile is half the work of one of 16; rows that are not there are work all the same.
    """
    return -(-rows // 8) < 2 * -(-rows // 16)


def packed_slice(columns: int, step: int) -> int:
    """Columns of packed weights in one stage: every team has as many slices, as long as they fit.

    Args:
        columns: of the matrix.
        step: columns that a warp takes at once, 128 of tiles of 16 rows or 256 of those of 8.
    """
    rows = 2 * TILE * 128 // step
    most = (STAGE_BYTES - GAP_BYTES * rows // 2 - 16 * rows) * 16 // (9 * rows) // step * step
    parts = TEAMS
    while -(-columns // parts) > most:
        parts += TEAMS
    return -(-columns // parts // step) * step


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
        "WINDOW": min(WINDOW, stages),
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
        mine = -(-rows // programs)
        if is_packed:
            low = tile == TILE and is_low(mine)
            tile = LOW_TILE if low else tile
            size = packed_slice(columns, LOW_STEP if low else STEP)
        else:
            # some programs have a row less, and with it maybe a lower or a higher tile
            heights = [height(n, tile) for n in (rows // programs, mine)]
            size = slice_columns(columns, TILE if tile == PAIR_TILE else max(heights))
        defines[f"{name}_TILE"], defines[f"{name}_SLICE"] = tile, size
    threads = (WARPS + PRODUCERS) * 32
    return Cut(defines, stages * STAGE_BYTES + work, programs, threads, splits)
