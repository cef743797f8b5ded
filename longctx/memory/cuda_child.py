"""The short-lived process that asks the CUDA driver what the GPUs are; makes no context."""

from __future__ import annotations

import ctypes
import json
import uuid

_INTEGRATED = 18  # CU_DEVICE_ATTRIBUTE_INTEGRATED
_COMPUTE_MAJOR, _COMPUTE_MINOR = 75, 76


def main() -> None:
    """Print one JSON document: {"error": null | str, "gpus": [...]}, in CUDA's order."""
    gpus: list[dict[str, object]] = []
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        print(json.dumps({"error": f"no CUDA driver: {error}", "gpus": []}))
        return
    code = driver.cuInit(0)
    if code != 0:
        print(json.dumps({"error": f"cuInit gave error {code}", "gpus": []}))
        return
    count = ctypes.c_int()
    if driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        count.value = 0
    for index in range(count.value):
        device = ctypes.c_int()
        if driver.cuDeviceGet(ctypes.byref(device), index) != 0:
            continue
        name = ctypes.create_string_buffer(256)
        total = ctypes.c_size_t()
        raw = (ctypes.c_ubyte * 16)()
        get_uuid = getattr(driver, "cuDeviceGetUuid_v2", driver.cuDeviceGetUuid)
        has_name = driver.cuDeviceGetName(name, 256, device) == 0
        has_total = driver.cuDeviceTotalMem_v2(ctypes.byref(total), device) == 0
        has_uuid = get_uuid(ctypes.byref(raw), device) == 0
        attributes: list[int | None] = []
        for number in (_INTEGRATED, _COMPUTE_MAJOR, _COMPUTE_MINOR):
            value = ctypes.c_int()
            got = driver.cuDeviceGetAttribute(ctypes.byref(value), number, device) == 0
            attributes.append(value.value if got else None)
        gpus.append(
            {
                "index": index,
                "name": name.value.decode("utf-8", "replace") if has_name else None,
                "uuid": str(uuid.UUID(bytes=bytes(raw))) if has_uuid else None,
                "total_bytes": total.value if has_total else None,
                "integrated": None if attributes[0] is None else bool(attributes[0]),
                "compute_capability": attributes[1:],
            }
        )
    print(json.dumps({"error": None, "gpus": gpus}))


if __name__ == "__main__":
    main()
