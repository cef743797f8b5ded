"""The live view in a terminal: phase, turn, rate, and the pools as bars against their limits."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from longctx.guard import Action, Limits
from longctx.memory import Sample
from longctx.screen.state import PoolState, RunState
from longctx.units import format_bytes, format_seconds, format_tokens

_BAR_CELLS = 24
_PHASES = {"prepare": "preparing", "load": "loading the model", "finish": "finishing"}


class LiveScreen:
    """Draws on stderr with rich; everything it shows is in a RunState."""

    def __init__(self, console: Console) -> None:
        self._state = RunState()
        self._console = console
        self._live = Live(
            get_renderable=self._render, console=console, refresh_per_second=8, transient=True
        )
        self._open = False

    def started(self, directory: str, title: str) -> None:
        self._state.directory, self._state.title = directory, title
        self._live.start()
        self._open = True

    def limits(self, limits: list[Limits], used_bytes: dict[str, int | None]) -> None:
        for limit in limits:
            name = limit.pool.name
            self._state.pools[name] = PoolState(
                name, limit.soft_bytes, limit.ceiling_bytes, used_bytes.get(name)
            )
            self._print(
                f"[dim]{name}: soft stop at {format_bytes(limit.soft_bytes)}, ceiling "
                f"{format_bytes(limit.ceiling_bytes)} ({limit.source})[/dim]"
            )

    def plan(self, turns: int, peak_bytes: int | None, peak_turn: int | None) -> None:
        self._state.turns = turns
        self._state.predicted_peak_bytes = peak_bytes

    def phase(self, name: str) -> None:
        self._state.phase = name

    def load_progress(self, done_bytes: int, total_bytes: int) -> None:
        self._state.load_done_bytes, self._state.load_total_bytes = done_bytes, total_bytes

    def turn_started(
        self, index: int, total: int, kind: str, tokens: int, predicted_peak_bytes: int | None
    ) -> None:
        self._state.begin_turn(index, total, kind, tokens, predicted_peak_bytes)

    def step(self, tokens: int, elapsed_s: float) -> None:
        self._state.add_step(tokens, elapsed_s)

    def turn_done(self, turn: dict[str, Any]) -> None:
        self._state.turn_done_tokens = self._state.turn_tokens

    def sample(self, sample: Sample, action: Action) -> None:
        pool = self._state.pools.get(sample.pool)
        if pool is not None:
            pool.used_bytes = sample.used_bytes

    def warn(self, message: str) -> None:
        self._print(Text(f"warning: {message}", style="yellow"))

    def close(self) -> None:
        if self._open:
            self._open = False
            with contextlib.suppress(OSError, ValueError):
                self._live.stop()

    def _print(self, what: RenderableType | str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._console.print(what)

    def _render(self) -> RenderableType:
        state = self._state
        head = Table.grid(expand=True)
        head.add_column(ratio=1)
        head.add_column(justify="right")
        head.add_row(
            Text(f"longctx  {state.title}", style="bold", overflow="ellipsis", no_wrap=True),
            Text(format_seconds(time.monotonic() - state.started), style="dim"),
        )
        return Group(head, self._activity(), *map(self._pool, state.pools.values()))

    def _activity(self) -> Text:
        state = self._state
        if state.phase != "turn":
            line = Text(_PHASES.get(state.phase, state.phase))
            if state.phase == "load" and state.load_total_bytes:
                line.append(
                    f"  {format_bytes(state.load_done_bytes)} of {format_bytes(state.load_total_bytes)}"
                )
            return line
        rate, eta = state.rate_tokens_per_s(), state.eta_s()
        line = Text(f"turn {state.turn} of {state.turns} {state.kind}  ")
        line.append_text(_bar(state.turn_done_tokens / max(state.turn_tokens, 1), 12, "cyan"))
        line.append(
            f" {format_tokens(state.turn_done_tokens)}/{format_tokens(state.turn_tokens)} tokens"
        )
        if rate:
            line.append(f"  {rate:,.0f}/s")
        if eta:
            line.append(f"  {format_seconds(eta)} left", style="dim")
        line.no_wrap, line.overflow = True, "ellipsis"
        return line

    def _pool(self, pool: PoolState) -> Text:
        used = pool.used_bytes
        style = "green"
        if used is not None and used >= pool.soft_bytes:
            style = "red"
        elif used is not None and used >= 0.9 * pool.soft_bytes:
            style = "yellow"
        line = Text(f"{pool.name:<8.8} ")
        soft_cell = min(int(_BAR_CELLS * pool.soft_bytes / pool.ceiling_bytes), _BAR_CELLS - 1)
        line.append_text(_bar((used or 0) / pool.ceiling_bytes, _BAR_CELLS, style, mark=soft_cell))
        line.append(f" {format_bytes(used)}", style=style)
        line.append(f" of {format_bytes(pool.ceiling_bytes)}")
        predicted = self._state.predicted_peak_bytes
        if predicted is not None and pool is next(iter(self._state.pools.values())):
            line.append(f"  predicted {format_bytes(predicted)}", style="dim")
        line.no_wrap, line.overflow = True, "ellipsis"
        return line


def _bar(share: float, cells: int, style: str, mark: int | None = None) -> Text:
    full = round(min(max(share, 0.0), 1.0) * cells)
    bar = Text()
    for cell in range(cells):
        if cell == mark:
            bar.append("┃", style="bold")
        elif cell < full:
            bar.append("━", style=style)
        else:
            bar.append("─", style="dim")
    return bar
