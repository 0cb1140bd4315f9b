# SPDX-License-Identifier: Apache-2.0
"""Numbers that count on, wherever they stand: what lies between two of them is an entry of a list.

So entries are found in any dress: `{"id": 7, "name": "X"}`, `S01E07 - X`, `[X](https://example.org/7)`, a heading
with a sentence below, a block of lines. A few counters are followed at a time, since a list may have more than one.
"""

from __future__ import annotations

from typing import Final

from vllm_surgery.loops import entries as entry_lists
from vllm_surgery.loops.entries import BLOCK, CHOICE, MARKED, NUMBERED, RECORD
from vllm_surgery.loops.kernels import Layout, Record, Records, kernel
from vllm_surgery.loops.scanner import BASE, BREAK, MARK, MODULUS, NUMBER, WORD
from vllm_surgery.loops.signs import CHOICES, CLOSERS, COMMAS, PIPE, RECORD_SIGNS, TIME_SIGNS

COUNTERS: Final = 4

_SURE: Final = 3
"""Numbers in a row that make a counter."""

_STALE: Final = 600
"""Units after which a counter is given up."""

_LEAP: Final = 3
"""Numbers that a list which is sure may leave out, less one."""

_LEAD_WORDS: Final = 4
"""Words before the counter that may belong to an entry, as in `Season 1, Episode 7`."""

FACTOR: Final = 1_000_003

Counter = Layout(
    length=0,
    last=0,
    step=0,
    key=0,
    seen=0,
    first=0,
    line=-1,
    lead=0,
    said=0,
    letters=0,
    words=0,
    record=0,
    just=0,
    breaks=0,
    entry_breaks=0,
    beside=0,
    fresh=0,
)
"""Numbers so far; the last one; what it is raised by; what stands before it; the unit at which it was seen; of the
entry that it began: first token, number of its line, first word of that line, hashes of what it says and of its
words, how many words, how many signs of a record, whether nothing but the counter was read; lines that have ended in
it, and in the one before; whether something else stands there; whether a line has just begun."""

Line = Layout(number=0, first=0, words=0, lead=0, before=0, before_said=0, before_spaced=0, before_that=0, units=0)
"""The line that is being read: its number, first token, words so far, first of them; kind and hash of the unit before,
whether it was spaced, and the kind of the one before that; units seen."""


@kernel
def read(
    kind: int,
    said: int,
    value: int,
    token: int,
    spaced: int,
    counters: Records,
    lines: Records,
    lists: Records,
    offset: int,
    idle: bool,
    rules: Record,
) -> None:
    """Reads a unit. The list of counter c is `lists[offset + c]`."""
    line = lines[0]
    if line.units == 0 or line.before == BREAK:
        line.first = token
        line.words = 0
        line.lead = 0
    counting = kind == NUMBER and value >= 0 and not _is_part_of_a_number(line, spaced)
    counts = -1
    if counting:
        counts = _counted(value, _key(line), counters)
    elif kind == NUMBER:
        counts = -2
    for index in range(COUNTERS):
        if counters[index].length:
            _read_into(kind, said, value, counts, counters[index])
    if counts >= 0:
        _extend(value, token, counters[counts], line, lists[offset + counts], idle, rules)
    elif counting and not _stands_again(value, counters):
        _seed(value, token, counters, line, lists, offset)
    _note(kind, said, spaced, line)


@kernel
def stands_in_line(counters: Records, number: int) -> bool:
    """True if a number that counts stands in the line of this number."""
    for index in range(COUNTERS):  # noqa: SIM110 - Numba compiles no generators here.
        if counters[index].length >= _SURE and counters[index].line == number:
            return True
    return False


@kernel
def _note(kind: int, said: int, spaced: int, line: Record) -> None:
    if kind == BREAK:
        line.number += 1
    elif kind in (WORD, NUMBER):
        if line.words == 0:
            line.lead = said if kind == WORD else 0
        line.words += 1
    line.before_that = line.before
    line.before = kind
    line.before_said = said
    line.before_spaced = spaced
    line.units += 1


@kernel
def _is_part_of_a_number(line: Record, spaced: int) -> bool:
    """True if a number is the minute of 12:30 or the day of 2031-05-17."""
    if spaced or line.before != MARK or line.before_spaced or line.before_that != NUMBER:
        return False
    return bool(line.before_said in TIME_SIGNS)


@kernel
def _key(line: Record) -> int:
    """Stands for what is before a number: a word, the beginning of a line, a sign."""
    if line.units == 0 or line.before == BREAK:
        return 2
    return int(3 + line.before_said) if line.before == MARK else -int(line.before_said)


@kernel
def _counted(value: int, key: int, counters: Records) -> int:
    """The counter of which `value` is the next number; -1 if there is none.

    Of several it is the one before whose numbers the same stands, then one before whose numbers any word does, then the
    longest.
    """
    best = -1
    most = 0
    for index in range(COUNTERS):
        counter = counters[index]
        alike = counter.key == key or (counter.key < 0 and key < 0)
        if counter.length and alike and _is_next(value, counter):
            rank = counter.length + (1 << 40 if counter.key == key else 0)
            if rank > most:
                most = rank
                best = index
    return best


@kernel
def _is_next(value: int, counter: Record) -> bool:
    step = value - counter.last
    if counter.length == 1:
        return bool(step in (1, -1))
    if counter.length >= _SURE and counter.step == 1:
        return bool(1 <= step <= _LEAP)
    return bool(step == counter.step)


@kernel
def _stands_again(value: int, counters: Records) -> bool:
    for index in range(COUNTERS):  # noqa: SIM110 - As above.
        if counters[index].length >= _SURE and counters[index].last == value:
            return True
    return False


@kernel
def _read_into(kind: int, said: int, value: int, counts: int, counter: Record) -> None:
    """Adds a unit to the entry of a counter, but for numbers that count."""
    if kind == BREAK:
        counter.breaks += 1
        counter.fresh = 1
        return
    over = counter.fresh and counter.breaks >= max(counter.entry_breaks, 1) and counter.length >= _SURE
    if kind == MARK:
        if said in RECORD_SIGNS or (counter.just and said in COMMAS):
            counter.record += 1 if said == PIPE else 2
        if over and said in CLOSERS:
            counter.beside = 1
        counter.fresh = 0
        counter.just = 0
        return
    if over and (said if kind == WORD else 0) != counter.lead and counts < 0:
        counter.beside = 1
    counter.fresh = 0
    counter.just = 0
    if kind == NUMBER and (counts >= 0 or (counter.length >= _SURE and value == counter.last)):
        return
    counter.said = (counter.said * FACTOR + said) % MODULUS
    if kind == WORD:
        counter.letters = (counter.letters * FACTOR + said) % MODULUS
        counter.words += 1


@kernel
def _extend(value: int, token: int, counter: Record, line: Record, entries: Record, idle: bool, rules: Record) -> None:
    first = token
    if counter.line != line.number and line.words <= _LEAD_WORDS:
        first = line.first
    if counter.words:
        flags = NUMBERED | (RECORD if counter.record > 1 else MARKED) | (BLOCK if counter.breaks > 2 else 0)  # noqa: PLR2004
        if counter.said <= BASE or counter.said in CHOICES:  # One character, or a usual answer.
            flags |= CHOICE
        entry_lists.add(entries, counter.said, counter.letters, counter.first, first, counter.words, flags, idle, rules)
    elif not entries.looping:
        entry_lists.forget(entries)
    if counter.length == 1:
        counter.step = value - counter.last
    counter.entry_breaks = counter.breaks
    _begin_entry(value, first, counter, line)
    counter.length += 1


@kernel
def _begin_entry(value: int, first: int, counter: Record, line: Record) -> None:
    counter.last = value
    counter.seen = line.units
    counter.first = first
    counter.line = line.number
    counter.lead = line.lead
    counter.said = 0
    counter.letters = 0
    counter.words = 0
    counter.record = 0
    counter.just = 1
    counter.breaks = 0
    counter.beside = 0
    counter.fresh = 0


@kernel
def _seed(value: int, token: int, counters: Records, line: Record, lists: Records, offset: int) -> None:
    """Follows a number that may be the first of a counter, in the place of the shortest one."""
    place = -1
    least = _SURE
    for index in range(COUNTERS):
        counter = counters[index]
        stale = line.units - counter.seen > _STALE
        length = 0 if stale else counter.length
        if length < least and not lists[offset + index].looping:
            least = length
            place = index
    if place < 0:
        return
    counter = counters[place]
    entry_lists.forget(lists[offset + place])
    counter.length = 1
    counter.step = 0
    counter.entry_breaks = 0
    counter.key = _key(line)
    _begin_entry(value, line.first if line.words <= _LEAD_WORDS else token, counter, line)
