"""A worker without a model: the same wire, arithmetic instead of tensors, memory and faults on request.

It is a test double for the guard and the session, and a teaching aid (`--model fake`): nothing is
computed, but the memory that it is told to take is really taken. It finds the announced secret in
the ids it was given (bytes), so recall works as with a model that recalls.

The environment variable LONGCTX_FAKE holds a JSON object; sizes are bytes or texts ("64MiB"):

load_bytes              held from loading until the end
token_bytes             held per token of the cache
step_token_bytes        taken during a step, per new token
step_score_bytes        taken during a step, per new token x (context + new tokens)
retain                  true: what a step took is kept, as a caching allocator does, until a release
need_factor             stated need = real need x this (0.5 lies); null states no need at all
seconds_per_token, load_s, free_s (how long a step holds its memory)
answer                  the text of every answer but the first turn's, instead of the secret
fill_bytes_per_s        the rate at which memory is taken; null for as fast as possible
ignore_term             true: SIGTERM does nothing
faults                  list of {"before": TYPE, "count": N, "do": FAULT, ...}: at the N-th message
                        (default 1) of that type ("any" counts all), before it is sent

FAULT: crash (signal), exit (code), garbage (text), half, close_pipe, silence, stop (SIGSTOP),
hold_gil (seconds), sleep (seconds), grow (bytes, hold), grandchild (bytes; leaves the session),
shm (bytes, file), oom, error, retype (to).
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import platform
import signal
import sys
import time
from typing import Any

from longctx.engine.fake_answer import answer_text
from longctx.engine.fake_faults import Faults, give_back, take
from longctx.engine.mailbox import Mailbox
from longctx.engine.process_status import status_bytes
from longctx.guard.spawn import enter_worker
from longctx.units import parse_bytes
from longctx.wire import PROTOCOL, Wire

_DEFAULTS: dict[str, Any] = {
    "load_bytes": 0, "token_bytes": 0, "step_token_bytes": 0, "step_score_bytes": 0,
    "retain": False, "need_factor": 1.0, "seconds_per_token": 0.0, "load_s": 0.0, "free_s": 0.0,
    "answer": None, "fill_bytes_per_s": None, "ignore_term": False, "faults": [],
}  # fmt: skip


class FakeWorker:
    """Answers the supervisor's messages; `run` returns when it is told to close."""

    def __init__(self, wire: Wire, out_fd: int, settings: dict[str, Any]) -> None:
        self._wire, self._settings = wire, settings
        self._faults = Faults(settings["faults"], out_fd)
        self._mailbox = Mailbox(wire)
        self._mailbox.start()
        self._load: dict[str, Any] = {}
        self._ids: list[int] = []
        self._weights: list[mmap.mmap] = []
        self._cache: list[mmap.mmap] = []
        self._retained: list[mmap.mmap] = []
        self._cached_bytes = self._ask_count = 0

    def run(self) -> None:
        """Serve until `close`."""
        handlers = {"hello": self._on_hello, "load": self._on_load, "turn": self._on_turn}
        while True:
            message = self._mailbox.next()
            if message["type"] == "close":
                self._mailbox.closing()
                self._send({"type": "closed"})
                return
            handler = handlers.get(message["type"])
            if handler is None:
                self._send(_error(f"unknown message type {message['type']!r}"))
            else:
                handler(message)

    def _send(self, message: dict[str, Any]) -> None:
        self._faults.before(message)
        self._wire.send(message)

    def _on_hello(self, message: dict[str, Any]) -> None:
        self._send(
            {
                "type": "hello", "protocol": PROTOCOL, "pid": os.getpid(), "torch": None,
                "python": platform.python_version(), "device": "cpu", "threads": 1, "gpus": [],
                "attention_paths": {}, "runner": "fake",
            }
        )  # fmt: skip

    def _on_load(self, message: dict[str, Any]) -> None:
        self._load, begin = message, time.monotonic()
        size = parse_bytes(self._settings["load_bytes"])
        capacity = int(message["capacity_tokens"])
        kv_bytes = capacity * self._settings["token_bytes"]
        if not self._ask("load", None, capacity, 0, size + kv_bytes):
            self._send(_error("loading was refused", "usage"))
            return
        for part in range(1, 5):
            self._weights += take(size * part // 4 - size * (part - 1) // 4, self._rate)
            time.sleep(self._settings["load_s"] / 4)
            self._send(
                {
                    "type": "progress",
                    "phase": "load",
                    "done_bytes": size * part // 4,
                    "total_bytes": size,
                }
            )
        self._send(
            {
                "type": "loaded", "load_s": time.monotonic() - begin, "weight_bytes": size,
                "kv_bytes": kv_bytes, "kv_bytes_per_token": self._settings["token_bytes"],
                "attention": "fake", "kv_dtype": message.get("kv_dtype"), "shape": {},
            }
        )  # fmt: skip

    @property
    def _rate(self) -> float | None:
        return self._settings["fill_bytes_per_s"]

    def _ask(self, phase: str, turn: int | None, tokens: int, context: int, real: int) -> bool:
        self._ask_count += 1
        factor = self._settings["need_factor"]
        need = None if factor is None else round(real * factor)
        began = time.monotonic()
        self._send(
            {
                "type": "ask", "ask": self._ask_count, "phase": phase, "turn": turn,
                "tokens": tokens, "context_tokens": context, "need_bytes": need,
            }
        )  # fmt: skip
        while True:
            answer = self._mailbox.next()
            if answer["type"] in ("go", "stop") and answer.get("ask") == self._ask_count:
                self._asked_s = time.monotonic() - began
                return bool(answer["type"] == "go")
            if answer["type"] == "close":
                sys.exit(0)

    def _on_turn(self, message: dict[str, Any]) -> None:
        turn, begin = int(message["turn"]), time.monotonic()
        keep = int(message["keep_tokens"])
        del self._ids[keep:]
        self._resize_cache()
        new = [int(token) for token in message["ids"]]
        stopped, computed = self._prefill(turn, new)
        first_token_s, generated = None, list[int]()
        prefill_s = time.monotonic() - begin
        if stopped is None:
            answer = self._answer(int(message["max_new_tokens"]), message["stop_ids"])
            if not self._ask("decode", turn, len(answer), len(self._ids), 0):
                stopped = "admission" if self._mailbox.soft_stop is None else "soft"
            for token in answer if stopped is None else ():
                generated.append(token)
                first_token_s = first_token_s or time.monotonic() - begin
                if self._mailbox.soft_stop is not None and token != answer[-1]:
                    stopped = "soft"
                    break
                if token != answer[-1]:
                    # The cache gets every token but the last, which nobody has fed yet.
                    computed += len(self._ids) + 1 if message.get("recompute") else 1
                    self._ids.append(token)
                    time.sleep(self._settings["seconds_per_token"])
            self._resize_cache()
        release = self._release() if self._load.get("release") == "turn" else None
        released = None
        if release is not None:
            before, after = release["before_bytes"], release["after_trim_bytes"]
            released = None if before is None or after is None else max(before - after, 0)
        self._send(
            {
                "type": "turn_done", "turn": turn, "generated_ids": generated,
                "cache_tokens": len(self._ids), "computed_tokens": computed,
                "prefill_s": prefill_s, "time_to_first_token_s": first_token_s,
                "decode_s": time.monotonic() - begin - prefill_s,
                "worker_peak_bytes": status_bytes("VmHWM"), "allocator": None,
                "released_bytes": released, "stopped": stopped, "release": release,
            }
        )  # fmt: skip

    def _prefill(self, turn: int, new: list[int]) -> tuple[str | None, int]:
        step = self._load.get("prefill_step") or "whole"
        size = max(len(new), 1) if step == "whole" else int(step)
        done = 0
        while done < len(new):
            if self._mailbox.soft_stop is not None:
                return "soft", done
            tokens, context = min(size, len(new) - done), len(self._ids)
            temporary = tokens * self._settings["step_token_bytes"] + (
                tokens * (context + tokens) * self._settings["step_score_bytes"]
            )
            held = sum(len(block) for block in self._retained)
            real = max(temporary - held, 0) + tokens * self._settings["token_bytes"]
            if not self._ask("prefill", turn, tokens, context, real):
                return ("admission" if self._mailbox.soft_stop is None else "soft"), done
            begin = time.monotonic()
            blocks = take(max(temporary - held, 0), self._rate)
            self._ids += new[done : done + tokens]
            self._resize_cache()
            time.sleep(self._settings["free_s"] + tokens * self._settings["seconds_per_token"])
            if self._settings["retain"]:
                self._retained += blocks
            else:
                give_back(blocks)
            done += tokens
            self._send(
                {
                    "type": "step", "ask": self._ask_count, "phase": "prefill", "turn": turn,
                    "tokens": tokens, "context_tokens": context, "growth_bytes": real,
                    "elapsed_s": time.monotonic() - begin, "asked_s": self._asked_s,
                    "worker_peak_bytes": status_bytes("VmHWM"), "allocator": None,
                }
            )  # fmt: skip
        return None, done

    def _resize_cache(self) -> None:
        wanted = len(self._ids) * self._settings["token_bytes"]
        if wanted > self._cached_bytes:
            self._cache += take(wanted - self._cached_bytes, self._rate)
            self._cached_bytes = wanted
        elif wanted == 0:
            give_back(self._cache)
            self._cached_bytes = 0

    def _release(self) -> dict[str, int | None]:
        before = status_bytes("VmRSS")
        give_back(self._retained)
        after = status_bytes("VmRSS")
        return {"before_bytes": before, "after_bytes": after, "after_trim_bytes": after}

    def _answer(self, budget: int, stop_ids: list[int]) -> list[int]:
        text = answer_text(self._ids, self._settings["answer"])
        ids = list(text.encode("utf-8"))[:budget]
        return [*ids, *stop_ids[:1]][:budget] or [ord(".")]


def _error(text: str, kind: str = "internal") -> dict[str, Any]:
    return {
        "type": "error", "kind": kind, "message": f"The fake worker: {text}.", "hint": None,
        "turn": None, "requested_bytes": None, "free_bytes": None, "traceback": None,
    }  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Entry point: `python -m longctx.engine.fake_runner --in-fd N --out-fd M`."""
    enter_worker()
    parser = argparse.ArgumentParser(prog="longctx.engine.fake_runner")
    parser.add_argument("--in-fd", type=int, required=True)
    parser.add_argument("--out-fd", type=int, required=True)
    options = parser.parse_args(argv)
    given = json.loads(os.environ.get("LONGCTX_FAKE") or "{}")
    unknown = set(given) - set(_DEFAULTS)
    if unknown:
        sys.exit(
            f"LONGCTX_FAKE: unknown {', '.join(sorted(unknown))}; known: {', '.join(_DEFAULTS)}"
        )
    settings = {**_DEFAULTS, **given}
    if settings["ignore_term"]:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    FakeWorker(Wire(options.in_fd, options.out_fd), options.out_fd, settings).run()


if __name__ == "__main__":
    main()
