"""Writes a module named pynvml whose answers are given, for the NVML child's path."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from longctx.memory.nvml import NvmlClient

_MODULE = """
import json, os, time
_file = os.path.join(os.path.dirname(__file__), "answers.json")
def _now():
    return json.load(open(_file))
class NVMLError(Exception): pass
class _Info: pass
def nvmlInit():
    if _now().get("init_error"): raise NVMLError(_now()["init_error"])
def nvmlDeviceGetCount():
    answers = _now()
    time.sleep(answers.get("block_s", 0))
    return len(answers["gpus"])
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetUUID(handle): return _now()["gpus"][handle].get("uuid", f"GPU-{handle}")
def nvmlDeviceGetName(handle): return b"Fake GPU"
def nvmlDeviceGetMemoryInfo(handle):
    gpu = _now()["gpus"][handle]
    if gpu.get("not_supported"): raise NVMLError("Not Supported")
    info = _Info()
    info.total, info.used, info.free = gpu["total"], gpu["used"], gpu["free"]
    return info
def _list(handle, name):
    entries = []
    for used in _now()["gpus"][handle].get(name, []):
        entry = _Info(); entry.pid = 1; entry.usedGpuMemory = used; entries.append(entry)
    return entries
def nvmlDeviceGetComputeRunningProcesses(handle): return _list(handle, "compute")
def nvmlDeviceGetGraphicsRunningProcesses(handle): return _list(handle, "graphics")
"""


def answer(folder: Path, **answers: object) -> None:
    """Set what the fake module says from now on; written so that a reader never sees half of it."""
    import json

    temporary = folder / "answers.tmp"
    temporary.write_text(json.dumps({"gpus": [], **answers}))
    temporary.replace(folder / "answers.json")


@contextmanager
def nvml(folder: Path, timeout_s: float = 10.0, give_up_s: float = 20.0) -> Iterator[NvmlClient]:
    """A client whose child finds the fake module first."""
    folder.mkdir(exist_ok=True)
    (folder / "pynvml.py").write_text(_MODULE)
    import longctx.memory.nvml as module

    child = str(Path(module.__file__).with_name("nvml_child.py"))
    code = (
        f"import sys, runpy; sys.path.insert(0, {os.fspath(folder)!r}); "
        f"runpy.run_path({child!r}, run_name='__main__')"
    )
    client = NvmlClient(timeout_s, give_up_s, 0.05, command=[sys.executable, "-P", "-c", code])
    try:
        yield client
    finally:
        client.close()
