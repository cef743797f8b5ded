"""Loading inside the worker: what is checked first, what is asked for, and in which order."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from longctx.engine.cache import KV_TORCH_DTYPES
from longctx.engine.engine import Engine
from longctx.engine.load import load_model, resolve_device, resolve_dtype
from longctx.engine.talk import Talk
from longctx.engine.turn import StepPolicy
from longctx.engine.worker_memory import StepMeter, cap_allocator
from longctx.errors import UsageError
from longctx.models import ResolvedModel, resolve_model
from longctx.plan.formulas import kv_bytes, weight_bytes
from longctx.plan.predict import resolve_prefill_step

PROGRESS_INTERVAL_S = 0.1


@dataclass(frozen=True)
class LoadRequest:
    """The `load` message, checked."""

    model: str
    folder: str | None
    device: str
    dtype: str
    kv_dtype: str
    attention: str
    prefill_step: int | str
    capacity_tokens: int
    release: str
    allocator_cap_bytes: int | None
    seed: int
    allow_long: bool

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> LoadRequest:
        """Reads a `load` message; `auto` is resolved here.

        Raises:
            UsageError: a field is missing, of the wrong kind, or names nothing.
        """
        try:
            place = resolve_device(str(message.get("device") or "auto"))
            dtype = resolve_dtype(str(message.get("dtype") or "auto"), place)
            kv_dtype = str(message.get("kv_dtype") or "auto")
            step = message.get("prefill_step", "auto")
            attention = str(message.get("attention") or "auto")
            cap = message.get("allocator_cap_bytes")
            request = cls(
                model=str(message["model"]),
                folder=message.get("folder"),
                device=str(place),
                dtype=dtype,
                kv_dtype=dtype if kv_dtype == "auto" else kv_dtype,
                attention=attention,
                prefill_step=resolve_prefill_step(
                    step if isinstance(step, str) else int(step),
                    attention=attention,
                    device=place.type,
                ),
                capacity_tokens=int(message["capacity_tokens"]),
                release=str(message.get("release") or "never"),
                allocator_cap_bytes=None if cap is None else int(cap),
                seed=int(message.get("seed") or 0),
                allow_long=bool(message.get("allow_long", False)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"The load message has no usable {error}.") from None
        request._check()
        return request

    def _check(self) -> None:
        if self.release not in ("never", "turn"):
            raise UsageError(
                f"There is no release policy {self.release!r}.", "--release never|turn."
            )
        if self.kv_dtype not in KV_TORCH_DTYPES:
            raise UsageError(
                f"There is no KV dtype {self.kv_dtype!r}.",
                hint=f"--kv-dtype: {', '.join(KV_TORCH_DTYPES)}.",
            )
        step = self.prefill_step
        if step != "whole" and not (isinstance(step, int) and step > 0):
            raise UsageError(
                f"A prefill step of {step!r} is not possible.", hint="--prefill-step N or whole."
            )
        if self.capacity_tokens < 1:
            raise UsageError(f"A cache of {self.capacity_tokens} tokens holds nothing.")

    @property
    def torch_device(self) -> torch.device:
        """Where the model goes."""
        return torch.device(self.device)

    def resolve(self) -> ResolvedModel:
        """The model: by its folder if the supervisor found one, else by its name.

        Raises:
            UsageError, ModelError: as `longctx.models.resolve_model`.
        """
        if self.folder is None:
            return resolve_model(self.model, allow_download=False)
        found = resolve_model(str(self.folder), allow_download=False)
        return replace(found, spec=self.model)


def load(request: LoadRequest, talk: Talk) -> tuple[Engine, StepPolicy, StepMeter]:
    """Resolves, asks, loads, reserves the cache.

    Raises:
        StepRefused: the supervisor refused.
        UsageError, ModelError, or a failed allocation.
    """
    model = request.resolve()
    shape = model.shape
    capacity = request.capacity_tokens
    if not request.allow_long:
        capacity = min(capacity, shape.max_positions)  # slack beyond the last position is of no use
    need = weight_bytes(shape, request.dtype, model.weight_format)
    need += kv_bytes(shape, capacity, request.kv_dtype)
    talk.ask("load", None, 0, 0, need)
    cap_allocator(request.allocator_cap_bytes, request.torch_device)
    meter = StepMeter(request.torch_device)
    engine = load_model(
        model,
        device=request.device,
        dtype=request.dtype,
        attention=request.attention,
        kv_dtype=request.kv_dtype,
        seed=request.seed,
        allow_long=request.allow_long,
        progress=_throttled(talk),
    )
    engine.reserve(capacity)
    policy = StepPolicy(
        prefill_step=None if request.prefill_step == "whole" else int(request.prefill_step),
        dtype=request.dtype,
        attention=request.attention,
        device=request.torch_device.type,
        kv_dtype=request.kv_dtype,
        release=request.release,
    )
    engine.warm_up(policy.prefill_step)
    return engine, policy, meter


def _throttled(talk: Talk) -> Callable[[int, int], None]:
    """Progress messages at most every 0.1 s, and the last one."""
    last = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done >= total or now - last >= PROGRESS_INTERVAL_S:
            last = now
            talk.send("progress", phase="load", done_bytes=done, total_bytes=total)

    return progress
