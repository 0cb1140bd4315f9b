# SPDX-License-Identifier: Apache-2.0
"""The three detectors with what they remember of one request, each around its kernel."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import numpy as np

from vllm_surgery.loops import entries, lines, periods, turns
from vllm_surgery.loops.compiled import Integers, integers, room
from vllm_surgery.loops.loop import MOTIF_TOKENS, Kind, Loop, Outcome
from vllm_surgery.loops.thresholds import MAX_PERIOD, Thresholds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllm_surgery.loops.tokens import TokenTable


class Detector(Protocol):
    """Looks for one kind of loop in the tokens of one request."""

    kind: Kind

    def read(self, tokens: Integers) -> Iterator[Loop]:
        """Takes the next tokens and gives the loops that begin (running) or end (escaped) in them, in this order."""

    def running(self) -> Iterator[Loop]:
        """The loops that go on where the tokens end, as they stand: terminal or escaped."""


@lru_cache(maxsize=16)
def rules_of(thresholds: Thresholds) -> Integers:
    """`thresholds` as kernels take them."""
    return integers(thresholds.rules())


class Verbatim:
    """Verbatim loops. Its ring of tokens serves the other detectors too, for motifs."""

    __slots__ = ("_ring", "_rules", "_slots", "_state")
    kind: Kind = "verbatim"

    def __init__(self, rules: Integers) -> None:
        self._rules = rules
        self._ring = room(periods.RING)
        self._slots = room(periods.SLOTS, np.int16, -1)
        self._state = room(periods.STATE, np.int64)

    def read(self, tokens: Integers) -> Iterator[Loop]:
        """See `Detector`."""
        place, state = 0, self._state
        while place < len(tokens):
            place = periods.advance(tokens, place, self._ring, self._slots, state, self._rules)
            if state[periods.EVENT] == periods.BEGUN:
                yield self._loop("running")
            elif state[periods.EVENT] == periods.LEFT:
                yield self._loop("escaped")

    def running(self) -> Iterator[Loop]:
        """See `Detector`."""
        if self._state[periods.LOOPING]:
            yield self._loop("terminal")

    def kept(self, first: int, end: int) -> tuple[int, ...]:
        """The tokens from `first` on, before `end`, as many as a motif has. They must be among the last `RING` ones."""
        return tuple(int(self._ring[place % periods.RING]) for place in range(first, min(end, first + MOTIF_TOKENS)))

    def _loop(self, outcome: Outcome) -> Loop:
        onset, period, end = (int(self._state[field]) for field in (periods.ONSET, periods.LAG, periods.POSITION))
        cut = onset + (end - onset) // period * period  # Where the copy begins that isn't whole yet.
        latest = (place if place < end else place - period for place in range(cut, cut + min(period, MOTIF_TOKENS)))
        motif = tuple(int(self._ring[place % periods.RING]) for place in latest)
        return Loop(self.kind, onset, period, (end - onset) / period, end, outcome, motif)


class Decay:
    """Decay loops of lists, in lines or in one line. At most one of the two sorts is in a loop at a time."""

    __slots__ = ("_columns", "_lines", "_pieces", "_rules", "_state", "_tokens")
    kind: Kind = "decay"

    def __init__(self, rules: Integers, table: TokenTable, tokens: Verbatim) -> None:
        self._rules = rules
        self._columns = table.columns
        self._tokens = tokens
        self._lines = room(entries.LINES * entries.FIELDS)
        self._pieces = room(entries.PIECES_OF_LINE * entries.FIELDS)
        self._state = room(lines.STATE, np.int64)

    def read(self, tokens: Integers) -> Iterator[Loop]:
        """See `Detector`."""
        place = 0
        while place < len(tokens):
            place = lines.advance(tokens, place, self._columns, self._lines, self._pieces, self._state, self._rules)
            for base in lines.RINGS:
                event = self._state[base + entries.EVENT]
                if event:
                    yield self._loop(base, "running" if event == entries.BEGUN else "escaped")

    def running(self) -> Iterator[Loop]:
        """See `Detector`."""
        for base in lines.RINGS:
            if self._state[base + entries.LOOPING]:
                lasts = lines.lasts(self._state, base, self._rules)
                yield self._loop(base, "terminal" if lasts else "escaped")

    def _loop(self, base: int, outcome: Outcome) -> Loop:
        fields = (entries.ONSET, entries.END, entries.REPEATS, entries.MOTIF, entries.MOTIF_END)
        onset, end, repeats, first, last = (int(self._state[base + field]) for field in fields)
        motif = self._tokens.kept(first, last) if last - first <= MAX_PERIOD else ()
        return Loop(self.kind, onset, round((end - onset) / repeats), float(repeats), end, outcome, motif)


class Doom:
    """Doom loops: self-correction in circles."""

    __slots__ = ("_columns", "_pairs", "_rules", "_state", "_tokens", "_turns")
    kind: Kind = "doom"

    def __init__(self, rules: Integers, table: TokenTable, tokens: Verbatim) -> None:
        self._rules = rules
        self._columns = table.columns
        self._tokens = tokens
        self._pairs = room(turns.PAIRS, np.int8, -1)
        self._turns = room(turns.TURNS_KEPT * turns.TURN_FIELDS)
        self._state = room(turns.STATE, np.int64)
        self._state[turns.WORD] = -1
        self._state[turns.FRESH] = 1

    def read(self, tokens: Integers) -> Iterator[Loop]:
        """See `Detector`."""
        place = 0
        while place < len(tokens):
            place = turns.advance(tokens, place, self._columns, self._pairs, self._turns, self._state, self._rules)
            event = self._state[turns.EVENT]
            if event:
                yield self._loop("running" if event == turns.BEGUN else "escaped")

    def running(self) -> Iterator[Loop]:
        """See `Detector`."""
        if self._state[turns.LOOPING]:
            yield self._loop("terminal")

    def _loop(self, outcome: Outcome) -> Loop:
        fields = (turns.ONSET, turns.END, turns.REPEATS, turns.MOTIF)
        onset, end, repeats, first = (int(self._state[field]) for field in fields)
        if outcome == "terminal":
            end = int(self._state[turns.POSITION])
        motif = self._tokens.kept(first, first + MOTIF_TOKENS)
        return Loop(self.kind, onset, round((end - onset) / repeats), float(repeats), end, outcome, motif)
