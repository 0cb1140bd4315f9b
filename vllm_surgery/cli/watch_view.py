# SPDX-License-Identifier: Apache-2.0
"""The view of `vllm-surgery watch`. Needs rich, which vLLM brings."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import datetime
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from vllm_surgery.errors import one_line
from vllm_surgery.patch.describe import count

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from rich.console import RenderableType

    from vllm_surgery.client.protocol import ServerState
    from vllm_surgery.client.traffic import LoopCounts, PatchTraffic, Swaps, Traffic
    from vllm_surgery.intervals import Estimate

_PLAIN_WIDTH = 120
"""Columns where the output is no terminal: room for a long patch id beside its figures."""

_WORDS = frozenset({"patch", "kind", "swaps to", "result"})


class Screen:
    """The last look at a server, and when each swap was seen.

    Args:
        url: of the server, for the title.
        console: where to draw; stdout if None.
    """

    def __init__(self, url: str, console: Console | None = None) -> None:
        self._url, self._console = url, console or _stdout()
        self._counts: dict[tuple[str, str], int] | None = None
        self._seen: dict[tuple[str, str], str] = {}
        self._look: RenderableType = ""
        self._live: Live | None = None

    def show(self, state: ServerState, traffic: Traffic) -> None:
        """Draws a new look."""
        now = _now()
        self._notice(traffic.swaps, now)
        self._look = Group(
            _head(self._url, state, now),
            *_failures(traffic),
            _loop_table(state.active, traffic),
            *_swap_table(traffic, self._seen),
        )
        self._draw(self._look)

    def complain(self, error: str) -> None:
        """Draws an error below the last look, which stays."""
        self._draw(Group(self._look, Text(f"{_now()}  {one_line(error)}", style="bold red")))

    def live(self) -> AbstractContextManager[object]:
        """While entered, each look takes the place of the one before; where there is no terminal, it follows it."""
        if not self._console.is_terminal:
            return nullcontext()
        self._live = Live(console=self._console, auto_refresh=False)
        return self._live

    def _draw(self, content: RenderableType) -> None:
        if self._live:
            self._live.update(content, refresh=True)
        else:
            self._console.print(content)

    def _notice(self, swaps: tuple[Swaps, ...], now: str) -> None:
        counts = {(each.patch, each.result): each.count for each in swaps}
        if self._counts is not None:
            before = self._counts
            self._seen |= {key: now for key, number in counts.items() if number > before.get(key, 0)}
        self._counts = counts


def _stdout() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_PLAIN_WIDTH)


def _now() -> str:
    return f"{datetime.now().astimezone():%H:%M:%S}"


def _head(url: str, state: ServerState, now: str) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    rows = [
        ("server", Text(one_line(f"{url}, {state.model.name}, looked at {now}"))),
        ("active", Text(one_line(state.active), style="bold")),
        ("since", Text(one_line(f"{state.since}, epoch {state.epoch}, {count(state.units, 'unit')}"))),
        *([("desired", _desired(state))] if state.watching else []),
        *([] if state.can_swap else [("swaps", Text(one_line(f"not possible: {state.cannot_swap_reason}")))]),
    ]
    for name, value in rows:
        grid.add_row(Text(name, style="dim"), value)
    return grid


def _desired(state: ServerState) -> Text:
    wanted = state.desired
    text = one_line(": ".join(filter(None, [wanted.id, wanted.error])))
    return Text(text, style="" if wanted.id == state.active and not wanted.error else "bold yellow")


def _failures(traffic: Traffic) -> list[RenderableType]:
    number = traffic.detector_errors
    return [Text(f"{count(number, 'answer')} unwatched: a detector failed", style="bold red")] if number else []


def _loop_table(active: str, traffic: Traffic) -> RenderableType:
    if not traffic.patches:
        return Text("no answer yet", style="dim")
    table = _table("patch", "answers", "kind", "looped", "rate", "95 %", "live", "tokens")
    for patch in sorted(traffic.patches, key=lambda patch: patch.patch != active):
        for number, loops in enumerate(patch.loops):
            table.add_row(*(_patch_cells(patch, active) if number == 0 else ("", "")), *_loop_cells(loops))
    return table


def _patch_cells(patch: PatchTraffic, active: str) -> tuple[Text, str]:
    return Text(one_line(patch.patch), style="bold" if patch.patch == active else ""), f"{patch.answers:,}"


def _loop_cells(loops: LoopCounts) -> tuple[str | Text, ...]:
    return (
        Text(one_line(loops.kind)),
        f"{loops.answers:,}",
        _percent(loops.rate.value) if loops.rate else "",
        _interval(loops.rate),
        Text(str(loops.live), style="bold" if loops.live else "dim"),
        _percent(loops.token_share) if loops.token_share is not None else "",
    )


def _swap_table(traffic: Traffic, seen: Mapping[tuple[str, str], str]) -> list[RenderableType]:
    if not traffic.swaps:
        return []
    table = _table("swaps to", "result", "count", "mean", "last seen")
    for each in sorted(traffic.swaps, key=lambda each: seen.get((each.patch, each.result), ""), reverse=True):
        mean = f"{1000 * each.mean_seconds:,.0f} ms" if each.mean_seconds is not None else ""
        last = seen.get((each.patch, each.result), "before")
        table.add_row(Text(one_line(each.patch)), Text(one_line(each.result)), f"{each.count:,}", mean, last)
    return ["", table]


def _table(*names: str) -> Table:
    """Words on the left, numbers on the right; a long id takes several lines rather than room from the numbers."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for number, name in enumerate(names):
        if name in _WORDS:
            table.add_column(name, overflow="fold", min_width=12 if number == 0 else None)
        else:
            table.add_column(name, justify="right", no_wrap=True)
    return table


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _interval(rate: Estimate | None) -> str:
    return f"{100 * rate.low:.1f} to {100 * rate.high:.1f}" if rate else ""
