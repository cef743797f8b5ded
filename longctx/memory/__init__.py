"""Memory truth: the pools of this machine, and probes that read them (no torch, no CUDA)."""

from __future__ import annotations

from longctx.memory.discover import DriverFacts, GpuFacts, ask_driver, discover_pools
from longctx.memory.nvml import NvmlClient, NvmlProbe
from longctx.memory.proc import CgroupProbe, ProcProbe
from longctx.memory.types import Pool, PoolKind, Probe, Sample

__all__ = [
    "CgroupProbe",
    "DriverFacts",
    "GpuFacts",
    "NvmlClient",
    "NvmlProbe",
    "Pool",
    "PoolKind",
    "Probe",
    "ProcProbe",
    "Sample",
    "ask_driver",
    "discover_pools",
]
