# SPDX-License-Identifier: Apache-2.0
"""Decay loops: the latest entries of a list have collapsed onto a few answers.

Entries are kept in a ring as hashes of what they say. A list has collapsed when its latest n entries hold so few
different answers that each stands there several times, on average. Whether an entry is a line or a piece of a line is
for `lines` to say.
"""

from __future__ import annotations

from vllm_surgery.loops.compiled import Integers, kernel
from vllm_surgery.loops.thresholds import (
    BARE_COPIES,
    BARE_ENTRIES,
    COUNTED_COPIES,
    COUNTED_ENTRIES,
    CUT_TOKENS,
    ENTRY_COPIES,
    ENTRY_TOKENS,
    LEAVE_ENTRIES,
    LEAVE_TOKENS,
)

FIELDS = 4
"""Integers per entry: hash of what it says, the same without its numbers, its first token, and flags."""

LINES, PIECES_OF_LINE = 96, 64
"""Entries kept: cycles of up to 24 and 16 answers at four copies each."""

_SAID, _LETTERS, _FIRST, _FLAGS = range(FIELDS)

MARKED, BARE, CHOICE, COUNTED, _SAID_AGAIN, _LETTERS_AGAIN = 1, 2, 4, 8, 16, 32
"""Flags: the entry had a list marker; it had none and is nothing but words; it is one of few possible answers, such as
yes and no; it holds a number or two besides words; a later entry in the ring says the same, or says it with other
numbers."""

COUNT, LOOPING, ONSET, END, REPEATS, NEW, EVENT, ONSET_ENTRY, MOTIF, MOTIF_END, SORT, FIELD = range(12)
"""Where the state of a ring keeps: entries seen; whether the list is in a loop, since which token, up to which, with
how many entries that belong to it, and how many new ones since; what the last call brought about; the loop's first
entry; and the entry by which the loop was found: its first token, one past its last, its flags, and whether
its numbers count."""
STATE = 12

NOTHING, BEGUN, LEFT = range(3)
"""Events."""


@kernel
def add(
    ring: Integers,
    size: int,
    state: Integers,
    base: int,
    said: int,
    letters: int,
    first: int,
    end: int,
    sort: int,
    least: int,
    rules: Integers,
) -> None:
    """Adds an entry and notes in the state what that brought about.

    Args:
        ring: of `size` entries.
        size: see above.
        state: the ring's state begins at `base`.
        base: see above.
        said: hash of what the entry says.
        letters: hash of its letters.
        first: its first token.
        end: one past its last.
        sort: its flags.
        least: entries over which a list of this sort has collapsed.
        rules: see `thresholds`.
    """
    same, in_loop = _count(ring, size, state, base, _SAID, said)
    alike, alike_in_loop = _count(ring, size, state, base, _LETTERS, letters)
    slot = state[base + COUNT] % size * FIELDS
    ring[slot + _SAID] = said
    ring[slot + _LETTERS] = letters
    ring[slot + _FIRST] = first
    ring[slot + _FLAGS] = sort
    state[base + COUNT] += 1
    if state[base + LOOPING]:
        _go_on(state, base, in_loop if state[base + FIELD] == _SAID else alike_in_loop, end, rules)
        return
    field = _SAID
    window = 0
    if same + 1 >= rules[ENTRY_COPIES] and not sort & CHOICE:
        window = _collapsed(ring, size, state, base, end, least, rules)
    if window == 0 and sort & COUNTED and alike + 1 >= rules[COUNTED_COPIES]:
        field = _LETTERS
        window = _counts_on(ring, size, state, base, rules)
    if window:
        _begin(ring, size, state, base, field, window, first, end)
        state[base + SORT] = sort


@kernel
def leave(state: Integers, base: int) -> None:
    """Ends the loop."""
    state[base + LOOPING] = 0
    state[base + EVENT] = LEFT


@kernel
def has_left(state: Integers, base: int, position: int, rules: Integers) -> bool:
    """Whether the tokens since the last entry that belongs to the loop are too many for one more."""
    typical = (state[base + END] - state[base + ONSET]) // state[base + REPEATS]
    return bool(position - state[base + END] > max(rules[LEAVE_TOKENS], 2 * typical))


def lasts(state: Integers, base: int, position: int, rules: Integers) -> bool:
    """Whether what follows the loop, up to the end of the answer at `position`, is at most one entry that was cut."""
    typical = (state[base + END] - state[base + ONSET]) // state[base + REPEATS]
    return bool(state[base + NEW] == 0 and position - state[base + END] <= max(rules[CUT_TOKENS], 2 * typical))


@kernel
def forget(state: Integers, base: int) -> None:
    """Begins a new list: what was said before no longer counts."""
    state[base + COUNT] = 0


@kernel
def _count(ring: Integers, size: int, state: Integers, base: int, field: int, value: int) -> tuple[int, int]:
    """How many entries have `value` in a field, and whether one of them is in the loop. Marks the latest of them."""
    count = state[base + COUNT]
    again = _again(field)
    same = 0
    in_loop = 0
    for entry in range(count - 1, max(count - size, 0) - 1, -1):
        slot = entry % size * FIELDS
        if ring[slot + field] == value:
            if same == 0:
                ring[slot + _FLAGS] |= again
                in_loop = 1 if entry >= state[base + ONSET_ENTRY] else 0
            same += 1
    return same, in_loop


@kernel
def _again(field: int) -> int:
    return _SAID_AGAIN if field == _SAID else _LETTERS_AGAIN


@kernel
def _go_on(state: Integers, base: int, familiar: int, end: int, rules: Integers) -> None:
    if familiar:
        state[base + NEW] = 0
        state[base + REPEATS] += 1
        state[base + END] = end
        return
    state[base + NEW] += 1
    if state[base + NEW] >= rules[LEAVE_ENTRIES]:
        leave(state, base)


@kernel
def _collapsed(ring: Integers, size: int, state: Integers, base: int, end: int, least: int, rules: Integers) -> int:
    """The latest entries over which the list has collapsed; 0 if it hasn't."""
    count = state[base + COUNT]
    different = 0
    marked = 0
    bare = 0
    for window in range(1, min(count, size) + 1):
        slot = (count - window) % size * FIELDS
        flags = ring[slot + _FLAGS]
        if flags & CHOICE:
            return 0
        if not flags & _SAID_AGAIN:
            different += 1
        marked += flags & MARKED
        bare += 1 if flags & BARE else 0
        if window < rules[ENTRY_COPIES] * different:
            continue
        if 2 * marked >= window and (window >= least or end - ring[slot + _FIRST] >= rules[ENTRY_TOKENS]):
            return window
        if bare == window and window >= rules[BARE_ENTRIES] and window >= rules[BARE_COPIES] * different:
            return window
    return 0


@kernel
def _counts_on(ring: Integers, size: int, state: Integers, base: int, rules: Integers) -> int:
    """The latest entries over which the list has collapsed but for numbers in them; 0 if it hasn't."""
    count = state[base + COUNT]
    different = 0
    for window in range(1, min(count, size) + 1):
        flags = ring[(count - window) % size * FIELDS + _FLAGS]
        if not flags & COUNTED:
            return 0
        if not flags & _LETTERS_AGAIN:
            different += 1
        if window >= rules[COUNTED_ENTRIES] and window >= rules[COUNTED_COPIES] * different:
            return window
    return 0


@kernel
def _begin(
    ring: Integers, size: int, state: Integers, base: int, field: int, window: int, first: int, end: int
) -> None:
    count = state[base + COUNT]
    onset = count - window
    oldest = max(count - size, 0)
    while not ring[onset % size * FIELDS + _FLAGS] & _again(field):  # Said once: it isn't part of the collapse.
        onset += 1
    while onset > oldest and _is_among(ring, size, field, ring[(onset - 1) % size * FIELDS + field], onset, count):
        onset -= 1
    state[base + LOOPING] = 1
    state[base + ONSET_ENTRY] = onset
    state[base + FIELD] = field
    state[base + ONSET] = ring[onset % size * FIELDS + _FIRST]
    state[base + END] = end
    state[base + REPEATS] = count - onset
    state[base + MOTIF] = first
    state[base + MOTIF_END] = end
    state[base + NEW] = 0
    state[base + EVENT] = BEGUN


@kernel
def _is_among(ring: Integers, size: int, field: int, value: int, start: int, stop: int) -> bool:
    for entry in range(start, stop):  # noqa: SIM110 - Numba compiles no generators here.
        if ring[entry % size * FIELDS + field] == value:
            return True
    return False
