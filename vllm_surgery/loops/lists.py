# SPDX-License-Identifier: Apache-2.0
"""Cuts units into the entries of lists: lines, pieces of a line, and what lies between counters.

A hash of words and numbers stands for what an entry says: case, decoration and white space don't count, nor does its
marker.
"""

from __future__ import annotations

from typing import Final

from vllm_surgery.loops import counters as counting
from vllm_surgery.loops import entries as entry_lists
from vllm_surgery.loops.counters import COUNTERS, FACTOR
from vllm_surgery.loops.entries import CHOICE, COUNTED, MARKED, PIECE, RECORD
from vllm_surgery.loops.kernels import Layout, Record, Records, kernel
from vllm_surgery.loops.scanner import BASE, BREAK, MARK, MODULUS, NUMBER, WORD
from vllm_surgery.loops.signs import (
    AND_OR,
    BULLETS,
    CHOICES,
    CLOSINGS,
    COMMAS,
    OPENINGS,
    POINTS,
    QUOTES,
    RECORD_SIGNS,
    SPACED_COMMAS,
)

LINES, PIECES, COUNTED_LISTS = 0, 1, 2
"""Where in the lists the lines stand, the pieces, and what counters part."""

LISTS: Final = COUNTED_LISTS + COUNTERS

_ENCODED_TOKENS: Final = 24
"""Tokens to a word, and a line is encoded data: no tokenizer cuts the words of a language into so many."""

_START, _NUMBERED, _POINTED, _BODY = range(4)
"""Phases of a line: nothing but markers yet; a number, which may be a marker; and what closes one; what it says."""

_NO_BRACKET, _BRACKET, _YEAR, _ERA = range(4)
"""In a bracket: nothing, numbers, and a word behind them, as in `(221-206 BCE)`. What says more is no year."""

Entry = Layout(
    phase=0,
    first=-1,
    said=0,
    letters=0,
    words=0,
    numbers=0,
    number=0,
    marked=0,
    opened=0,
    record=0,
    quoted=0,
    before=0,
    bracket=0,
    units=0,
)
"""Of a line or a piece: how far it is read; its first token; hashes of what it says and of its words; how many words
and numbers; a number that may be a marker; whether it had a marker, began with what opens one, has signs of a
record, began with a quote; what it said before a bracket, and what stood in it since; units."""


@kernel
def advance(
    units: Records,
    start: int,
    count: int,
    parts: Records,
    counters: Records,
    lines: Records,
    lists: Records,
    rules_record: Records,
) -> int:
    """Reads units from `start` on, up to `count` or to an event, which the lists note.

    Args:
        units: see `scanner`.
        start: see above.
        count: see above.
        parts: two of `Entry`: the line and the piece that are being read.
        counters: see `counters`.
        lines: see `counters`.
        lists: `LISTS` of `EntryList`.
        rules_record: see `Thresholds`.

    Returns:
        The index after the last unit read.
    """
    rules = rules_record[0]
    for index in range(LISTS):
        lists[index].event = entry_lists.NOTHING
    for index in range(start, count):
        unit = units[index]
        kind, said, value, token, spaced = unit.kind, unit.said, unit.value, unit.token, unit.spaced
        _read_line(kind, said, token, spaced, parts[0])
        _read_piece(kind, said, token, spaced, parts[1], lists, rules)
        counting.read(kind, said, value, token, spaced, counters, lines, lists, COUNTED_LISTS, _is_idle(lists), rules)
        if kind == BREAK:
            _close_line(token + 1, counting.stands_in_line(counters, lines[0].number - 1), parts, lists, rules)
        if _leave_those_over(token, lists, rules):
            return index + 1
    return count


@kernel
def _is_idle(lists: Records) -> bool:
    for index in range(LISTS):  # noqa: SIM110 - Numba compiles no generators here.
        if lists[index].looping:
            return False
    return True


@kernel
def _leave_those_over(token: int, lists: Records, rules: Record) -> bool:
    """Leaves the loops that are over. Whether there is an event."""
    event = False
    for index in range(LISTS):
        entries = lists[index]
        if entries.looping and entry_lists.is_over(entries, token, rules):
            entry_lists.leave(entries, entries.new == 0)
        if entries.event:
            event = True
    return event


@kernel
def _say(kind: int, said: int, entry: Record) -> None:
    entry.said = (entry.said * FACTOR + said) % MODULUS
    if kind == WORD:
        entry.letters = (entry.letters * FACTOR + said) % MODULUS
        entry.words += 1
        entry.bracket = _ERA if entry.bracket == _YEAR else _NO_BRACKET
    else:
        entry.numbers += 1
        entry.bracket = _YEAR if entry.bracket in (_BRACKET, _YEAR) else _NO_BRACKET
    entry.phase = _BODY


@kernel
def open_entry(entry: Record) -> None:
    """Begins an entry."""
    entry.phase = _START
    entry.first = -1
    entry.said = 0
    entry.letters = 0
    entry.words = 0
    entry.numbers = 0
    entry.marked = 0
    entry.opened = 0
    entry.record = 0
    entry.quoted = 0
    entry.bracket = 0
    entry.units = 0


@kernel
def _read_line(kind: int, said: int, token: int, spaced: int, line: Record) -> None:
    if line.first < 0:
        line.first = token
    line.units += 1
    if kind == BREAK:
        return
    if kind == MARK and said in RECORD_SIGNS:
        line.record = 1
    if line.phase == _POINTED:
        _after_point(kind, spaced, line)
    if line.phase == _START:
        _at_start(kind, said, line)
    elif line.phase == _NUMBERED:
        _after_number(kind, said, line)
    elif line.phase == _BODY:
        _read_body(kind, said, line)


@kernel
def _at_start(kind: int, said: int, line: Record) -> None:
    if kind == WORD:
        _say(kind, said, line)
    elif kind == NUMBER:
        line.number = said
        line.phase = _NUMBERED
    elif said in BULLETS:
        line.marked = 1
    elif said in OPENINGS:
        line.opened = 1
    elif said in QUOTES:
        line.quoted = 1


@kernel
def _after_number(kind: int, said: int, line: Record) -> None:
    if kind == MARK and (said in POINTS or said in BULLETS):
        line.phase = _POINTED
        return
    if kind == WORD and line.opened:  # "#17 Pikachu"
        line.marked = 1
        _say(kind, said, line)
        return
    if kind == MARK and said in COMMAS:
        line.record = 1
    _say(NUMBER, line.number, line)
    _read_body(kind, said, line)


@kernel
def _after_point(kind: int, spaced: int, line: Record) -> None:
    if kind == NUMBER and not spaced:  # 3.5, 12:30: a number, not a marker.
        _say(NUMBER, line.number, line)
        return
    line.marked = 1
    line.phase = _START


@kernel
def _read_body(kind: int, said: int, entry: Record) -> None:
    """Reads the body of an entry. A number in brackets is a counter or a year and isn't part of it."""
    if kind != MARK:
        _say(kind, said, entry)
    elif said in OPENINGS:
        entry.before = entry.said
        entry.bracket = _BRACKET
    elif said in CLOSINGS and entry.bracket:
        entry.said = entry.before
        entry.bracket = _NO_BRACKET
    elif entry.bracket == _ERA:
        entry.bracket = _NO_BRACKET


@kernel
def _close_line(end: int, counts_on: bool, parts: Records, lists: Records, rules: Record) -> None:
    """Ends a line. `counts_on`: a counter stands in it."""
    line = parts[0]
    if line.phase == _NUMBERED:
        _say(NUMBER, line.number, line)
    if line.bracket:
        line.said = line.before
    pointed = line.phase == _POINTED
    flags = MARKED if pointed or line.marked else RECORD if line.record else 0
    field = (line.record or line.quoted) and line.numbers and not flags & MARKED
    encoded = end - line.first > _ENCODED_TOKENS * (line.words + line.numbers + 1)
    listed = line.words or (flags & MARKED and (line.numbers or pointed))
    if listed and not field and not encoded and not lists[PIECES].looping:
        few = line.numbers == 1 or (line.numbers == 2 and flags & MARKED)  # noqa: PLR2004
        if line.words and few and not flags & RECORD and not counts_on:
            flags |= COUNTED
        _add(end, line, lists, LINES, flags, rules)
    _close_piece(end, parts[1], lists, rules)
    if lists[PIECES].looping:
        entry_lists.leave(lists[PIECES], True)
    entry_lists.forget(lists[PIECES])
    open_entry(line)


@kernel
def _add(end: int, entry: Record, lists: Records, place: int, flags: int, rules: Record) -> None:
    said = entry.said
    if 0 <= said <= BASE or said in CHOICES:  # One character, or a usual answer.
        flags |= CHOICE
    entry_lists.add(lists[place], said, entry.letters, entry.first, end, entry.words, flags, _is_idle(lists), rules)


@kernel
def _read_piece(kind: int, said: int, token: int, spaced: int, piece: Record, lists: Records, rules: Record) -> None:
    if kind == BREAK:
        return
    if kind == MARK:
        if said in COMMAS or (spaced and said in SPACED_COMMAS):
            _close_piece(token + 1, piece, lists, rules)
        return
    if piece.first < 0:
        piece.first = token
    if piece.said or said not in AND_OR:
        _say(kind, said, piece)


@kernel
def _close_piece(end: int, piece: Record, lists: Records, rules: Record) -> None:
    if piece.words:
        _add(end, piece, lists, PIECES, PIECE, rules)
    elif piece.numbers:
        entry_lists.forget(lists[PIECES])
    open_entry(piece)
