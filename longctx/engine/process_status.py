"""What the kernel says of this process's memory; no torch, so that any runner can ask."""

from __future__ import annotations


def status_bytes(name: str) -> int | None:
    """A field of /proc/self/status (VmHWM, VmData) in bytes; None where it cannot be read."""
    try:
        with open("/proc/self/status", "rb") as file:
            for line in file:
                if line.startswith(name.encode() + b":"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None
