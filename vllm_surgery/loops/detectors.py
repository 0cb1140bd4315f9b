# SPDX-License-Identifier: Apache-2.0
"""The detectors of one request, one for each kind of loop, around their kernels and what these remember."""

from __future__ import annotations

import re
import threading
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Protocol

from vllm_surgery.loops import counters, entries, lists, periods, scanner, turns, windows
from vllm_surgery.loops.characters import classes, folded
from vllm_surgery.loops.kernels import Integers, Record, Records, frozen_record, readable
from vllm_surgery.loops.loop import MOTIF_TOKENS, Ending, Kind, Loop, Outcome
from vllm_surgery.loops.thresholds import MAX_PERIOD, Thresholds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllm_surgery.loops.tokens import TokenTable


class UnitDetector(Protocol):
    """Looks for one kind of loop in the units of one request."""

    kind: Kind

    def read(self, units: Records, count: int) -> Iterator[Loop]:
        """Takes the next units and gives the loops that begin (running) or end (escaped) in them, in this order."""

    def running(self) -> Iterator[Loop]:
        """The loops that go on where the units end."""

    def finish(self, total: int, ending: Ending) -> Iterator[Loop]:
        """The loops that go on where the answer of `total` tokens ends, as terminal, escaped or taken back."""


TAKEN_BACK = -1
"""The period of a loop that turned out to be none: what it had been called one by was a list that closed by itself."""


@lru_cache(maxsize=16)
def rules_of(thresholds: Thresholds) -> Records:
    """`thresholds` as kernels take them."""
    return frozen_record(thresholds)


class Verbatim:
    """Verbatim loops. Its ring of tokens serves the other detectors too, for motifs."""

    __slots__ = ("_rules", "_table", "_tail", "_tails")
    kind: Kind = "verbatim"

    def __init__(self, rules: Records, table: TokenTable | None = None) -> None:
        self._rules = rules
        self._table = table
        self._tails = periods.Tail.new()
        self._tail = readable(self._tails)[0]

    def read(self, tokens: Integers) -> Iterator[Loop]:
        """Takes the next tokens and gives the loops that begin (running) or end (escaped) in them, in this order."""
        place, tail = 0, self._tail
        while place < len(tokens):
            place = periods.advance(tokens, place, self._tails, self._rules)
            if tail.event == periods.BEGUN:
                yield self._loop("running")
            elif tail.event == periods.LEFT:
                yield self._taken_back_if_data(self._loop("escaped"))

    def running(self) -> Iterator[Loop]:
        """See `UnitDetector`."""
        if self._tail.looping:
            yield self._loop("running")

    def finish(self, ending: Ending) -> Iterator[Loop]:
        """See `UnitDetector`."""
        if self._tail.looping:
            loop = self._loop("terminal")
            yield self._taken_back_if_data(loop) if ending == "stop" else loop
        elif self._ends_in_a_loop(ending):
            yield replace(self._loop("terminal"), evidence="ending")

    def _ends_in_a_loop(self, ending: Ending) -> bool:
        """True if it ends in a loop by lower floors: because it was cut, or in words if nobody knows."""
        if ending == "stop" or not periods.judge_cut(self._tails, self._rules):
            return False
        loop = self._loop("terminal")
        enough = loop.tokens >= readable(self._rules)[0].last_tokens and self._table is not None
        return ending == "cut" or (enough and not self._is_data(loop))

    def _taken_back_if_data(self, loop: Loop) -> Loop:
        """The loop, taken back if its few different tokens are data that ended by itself: zeros, silence."""
        if self._tail.variety == periods.POOR and self._table is not None and self._is_data(loop):
            return replace(loop, period=TAKEN_BACK)
        return loop

    def _is_data(self, loop: Loop) -> bool:
        """True if a loop is of numbers and signs, or part of something encoded."""
        assert self._table is not None
        if loop.tokens < _LONG_ROWS and not _LETTER.search(self._table.text(loop.motif)):
            return True
        ring, start = self._tail.ring, max(loop.onset - _BEFORE, loop.end - periods.RING + 1, 0)
        before = [int(ring[place % periods.RING]) for place in range(start, loop.onset)]
        run = _ENCODED.search(self._table.text(before))
        return run is not None and len(run[0]) >= _ENCODED_LENGTH

    def kept(self, first: int, end: int) -> tuple[int, ...]:
        """The tokens from `first` on, before `end`, as many as a motif has. They must be among the last `RING` ones."""
        ring = self._tail.ring
        return tuple(int(ring[place % periods.RING]) for place in range(first, min(end, first + MOTIF_TOKENS)))

    def _loop(self, outcome: Outcome) -> Loop:
        tail = self._tail
        onset, period, end = int(tail.onset), int(tail.lag), int(tail.position)
        cut = onset + (end - onset) // period * period  # Where the copy begins that isn't whole yet.
        latest = (place if place < end else place - period for place in range(cut, cut + min(period, MOTIF_TOKENS)))
        motif = tuple(int(tail.ring[place % periods.RING]) for place in latest)
        return Loop(self.kind, onset, period, (end - onset) / period, end, outcome, motif)


_LETTER = re.compile(r"[^\W\d_]")
_LONG_ROWS: Final = 512
"""Tokens from which on a matrix of zeros is a loop, even if it ended."""

_BEFORE: Final = 48
"""Tokens before a loop that say what it is part of."""

_ENCODED = re.compile(r"[A-Za-z0-9+/=_-]+\n?[A-Za-z0-9+/=_-]*$")
"""The last run without a space, over one end of a line at most."""

_ENCODED_LENGTH: Final = 32
"""Characters of such a run from which on it is base64 or hexadecimal."""


class Scanner:
    """Cuts the tokens of one request into units."""

    __slots__ = ("_scanner", "_scanners", "_table")

    def __init__(self, table: TokenTable) -> None:
        self._table = table
        self._scanners = scanner.SCANNER.new()
        self._scanner = readable(self._scanners)[0]

    def read(self, tokens: Integers) -> Iterator[tuple[Records, int]]:
        """The units that the next tokens end, and how many these are, in parts. A part is valid until the next one."""
        place, table = 0, self._table
        while place < len(tokens):
            units = _units()
            place = scanner.scan(tokens, place, table.data, table.starts, classes(), folded(), self._scanners, units)
            yield units, int(self._scanner.count)

    def finish(self) -> tuple[Records, int]:
        """The unit that nothing ended."""
        units = _units()
        return units, scanner.flush(self._scanners, units)


_local = threading.local()


def _units() -> Records:
    """Room for units, one for each thread: they don't outlive a call."""
    if not hasattr(_local, "units"):
        _local.units = scanner.UNIT.new(scanner.UNITS)
    return _local.units


class Decay:
    """Decay loops of lists: lines, pieces of a line, entries between counters. One list is in a loop at a time."""

    __slots__ = ("_counters", "_every", "_lines", "_lists", "_parts", "_rules", "_tokens")
    kind: Kind = "decay"

    def __init__(self, rules: Records, tokens: Verbatim) -> None:
        self._rules = rules
        self._tokens = tokens
        self._parts = lists.Entry.new(2)
        self._counters = counters.Counter.new(counters.COUNTERS)
        self._lines = counters.Line.new()
        self._lists = entries.EntryList.new(lists.LISTS)
        self._every = readable(self._lists)

    def read(self, units: Records, count: int) -> Iterator[Loop]:
        """See `UnitDetector`."""
        place = 0
        while place < count:
            place = lists.advance(
                units, place, count, self._parts, self._counters, self._lines, self._lists, self._rules
            )
            for one in self._every:
                if one.event:
                    yield _loop_of_list(self.kind, one, _OUTCOMES[int(one.event)], self._tokens)

    def running(self) -> Iterator[Loop]:
        """See `UnitDetector`."""
        for one in self._every:
            if one.looping:
                yield _loop_of_list(self.kind, one, "running", self._tokens)

    def finish(self, total: int, ending: Ending) -> Iterator[Loop]:
        """See `UnitDetector`."""
        for place, one in enumerate(self._every):
            if one.looping:
                yield _last_loop(self.kind, one, self._lasts(place, one, total), ending, self._tokens)
                return
        if ending == "cut":
            yield from self._cut(total)

    def _cut(self, total: int) -> Iterator[Loop]:
        for place, one in enumerate(self._every):
            if entries.judge_cut(self._lists[place], self._end_of_entries(place, total), self._rules):
                if self._lasts(place, one, total):
                    yield replace(_loop_of_list(self.kind, one, "terminal", self._tokens), evidence="ending")
                    return
                one.looping = 0

    def _end_of_entries(self, place: int, total: int) -> int:
        """One past the last token of a list's last whole entry."""
        if place >= lists.COUNTED_LISTS:
            return int(readable(self._counters)[place - lists.COUNTED_LISTS].first)
        first = int(readable(self._parts)[place].first)
        return first if first >= 0 else total

    def _lasts(self, place: int, one: Record, total: int) -> bool:
        """True if at most a cut entry follows the list's last whole one, up to the end of the answer."""
        rules = readable(self._rules)[0]
        rest = total - int(one.end)
        if one.new or rest > max(rules.rest_tokens, 2 * entries.typical_tokens(one)):
            return False
        if place >= lists.COUNTED_LISTS:
            return not readable(self._counters)[place - lists.COUNTED_LISTS].beside
        line = readable(self._parts)[0]
        beside = place == lists.LINES and line.words and not line.marked and one.loop_traits & entries.MARKED
        return not beside or rest < rules.beside_tokens


_OUTCOMES: dict[int, Outcome] = {entries.BEGUN: "running", entries.LEFT: "escaped", entries.TAKEN_BACK: "escaped"}


def _loop_of_list(kind: Kind, one: Record, outcome: Outcome, tokens: Verbatim) -> Loop:
    onset, end, repeats = int(one.onset), int(one.end), max(int(one.repeats), 1)
    first, last = int(one.motif), int(one.motif_end)
    motif = tokens.kept(first, last) if last - first <= MAX_PERIOD else ()
    period = TAKEN_BACK if one.event == entries.TAKEN_BACK else round((end - onset) / repeats)
    return Loop(kind, onset, period, float(repeats), end, outcome, motif)


def _last_loop(kind: Kind, one: Record, lasts: bool, ending: Ending, tokens: Verbatim) -> Loop:
    """The loop of a list at the end of the answer. One that named nothing else before and closed is none."""
    if not lasts or ending == "stop":
        entries.leave(one, one.new == 0)
    return _loop_of_list(kind, one, "terminal" if lasts else "escaped", tokens)


class Collapse:
    """Collapses: few words in no order."""

    __slots__ = ("_rules", "_tokens", "_window", "_windows")
    kind: Kind = "collapse"

    def __init__(self, rules: Records, tokens: Verbatim) -> None:
        self._rules = rules
        self._tokens = tokens
        self._windows = windows.Window.new()
        self._window = readable(self._windows)[0]

    def read(self, units: Records, count: int) -> Iterator[Loop]:
        """See `UnitDetector`."""
        place, window = 0, self._window
        while place < count:
            place = windows.advance(units, place, count, windows.weights(), self._windows, self._rules)
            if window.event:
                yield self._loop("running" if window.event == windows.BEGUN else "escaped")

    def running(self) -> Iterator[Loop]:
        """See `UnitDetector`."""
        if self._window.looping:
            yield self._loop("running")

    def finish(self, total: int, ending: Ending) -> Iterator[Loop]:
        """See `UnitDetector`."""
        del ending
        window = self._window
        if window.looping:
            lasts = total - int(window.end) <= readable(self._rules)[0].rest_tokens
            yield self._loop("terminal" if lasts else "escaped")

    def _loop(self, outcome: Outcome) -> Loop:
        window = self._window
        onset, end = int(window.onset), int(window.end)
        words = max(int(window.count) - int(window.first_word), 1)
        return Loop(self.kind, onset, max(round((end - onset) / words), 1), float(words), end, outcome)


class Doom:
    """Doom loops: self-correction in circles, and plans in circles without a cue."""

    __slots__ = ("_plan", "_plans", "_row", "_rules", "_sentences", "_tokens", "_turns")
    kind: Kind = "doom"

    def __init__(self, rules: Records, tokens: Verbatim) -> None:
        self._rules = rules
        self._tokens = tokens
        self._turns = turns.Turns.new()
        self._sentences = turns.Sentence.new()
        self._plans = entries.EntryList.new()
        self._row, self._plan = readable(self._turns)[0], readable(self._plans)[0]

    def read(self, units: Records, count: int) -> Iterator[Loop]:
        """See `UnitDetector`."""
        place, row, plan = 0, self._row, self._plan
        while place < count:
            place = turns.advance(units, place, count, self._turns, self._sentences, self._plans, self._rules)
            if row.event:
                yield self._loop("running" if row.event == turns.BEGUN else "escaped", int(row.end))
            if plan.event:
                yield _loop_of_list(self.kind, plan, _OUTCOMES[int(plan.event)], self._tokens)

    def running(self) -> Iterator[Loop]:
        """See `UnitDetector`."""
        if self._row.looping:
            yield self._loop("running", int(self._row.end))
        if self._plan.looping:
            yield _loop_of_list(self.kind, self._plan, "running", self._tokens)

    def finish(self, total: int, ending: Ending) -> Iterator[Loop]:
        """See `UnitDetector`."""
        if self._row.looping:
            yield self._loop("terminal", total)
        plan = self._plan
        if plan.looping:
            rest = total - int(plan.end)
            lasts = not plan.new and rest <= max(readable(self._rules)[0].rest_tokens, 2 * entries.typical_tokens(plan))
            yield _last_loop(self.kind, plan, lasts, ending, self._tokens)

    def _loop(self, outcome: Outcome, end: int) -> Loop:
        row = self._row
        onset, repeats, first = int(row.onset), int(row.repeats), int(row.motif)
        motif = self._tokens.kept(first, first + MOTIF_TOKENS)
        return Loop(self.kind, onset, round((end - onset) / repeats), float(repeats), end, outcome, motif)
