"""Data inside an HTML page: JSON that cannot end its element, and samples packed into few bytes."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

TIME_QUANTUM_S = 0.001


def safe_json(value: Any) -> str:
    """JSON for a script element: ASCII only, and without the characters that HTML reads as markup.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def pack(
    t_s: Sequence[float],
    values: Sequence[float],
    keep: Iterable[int],
    quantum: float,
    divide_by: float = 1.0,
) -> dict[str, Any]:
    """Chosen samples as differences in variable-length integers, base64: about 4 bytes a sample.

    A point is varint(milliseconds since the point before), then varint(2 z) with z the zigzag code of
    the change in quanta since the last known value, or varint(1) for a value that is unknown (NaN).

    Args:
        quantum: the step that values are rounded to.
        divide_by: what the page divides values by before it shows them (bytes to GB).

    Returns:
        n points, data, time_quantum_s, value_quantum, divide_by.
    """
    out = bytearray()
    last_t = last_v = n = 0
    for i in keep:
        t = round(t_s[i] / TIME_QUANTUM_S)
        _varint(out, max(t - last_t, 0))
        last_t = max(t, last_t)
        value = values[i]
        if value != value:
            out.append(1)
        else:
            v = round(value / quantum)
            step = v - last_v
            _varint(out, (step << 1 if step >= 0 else (-step << 1) - 1) << 1)
            last_v = v
        n += 1
    return {
        "n": n,
        "data": base64.b64encode(bytes(out)).decode("ascii"),
        "time_quantum_s": TIME_QUANTUM_S,
        "value_quantum": quantum,
        "divide_by": divide_by,
    }


def unpack(packed: dict[str, Any]) -> tuple[list[float], list[float]]:
    """The samples back, in Python, as the page's script reads them."""
    data = base64.b64decode(packed["data"])
    place = last_t = last_v = 0
    t_s: list[float] = []
    values: list[float] = []

    def read() -> int:
        nonlocal place
        number = shift = 0
        while True:
            byte = data[place]
            place += 1
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
            shift += 7

    for _ in range(packed["n"]):
        last_t += read()
        code = read()
        t_s.append(last_t * packed["time_quantum_s"])
        if code & 1:
            values.append(math.nan)
        else:
            step = code >> 1
            last_v += step >> 1 if step & 1 == 0 else -((step + 1) >> 1)
            values.append(last_v * packed["value_quantum"])
    return t_s, values


def quantum_of(highest: float | None) -> float:
    """The step that values are rounded to: a ten-thousandth of the highest, as a power of ten."""
    if not highest or highest < 1e4:
        return 1.0
    return float(10 ** math.floor(math.log10(highest) - 4))


def _varint(out: bytearray, number: int) -> None:
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
