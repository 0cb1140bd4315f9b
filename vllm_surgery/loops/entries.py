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
    CUT_TOKENS,
    ENTRY_COPIES,
    ENTRY_TOKENS,
    LEAVE_ENTRIES,
    LEAVE_TOKENS,
)

FIELDS = 3
"""Integers per entry: hash of what it says, its first token, and flags."""

LINES, PIECES_OF_LINE = 128, 64
"""Entries kept: cycles of up to 32 and 16 answers at four copies each."""

_SAID, _FIRST, _FLAGS = range(FIELDS)

MARKED, BARE, CHOICE, _AGAIN = 1, 2, 4, 8
"""Flags: the entry had a list marker; it had none and is nothing but words; it is one of few possible answers, such as
yes and no; a later entry in the ring says the same."""

COUNT, LOOPING, ONSET, END, REPEATS, NEW, EVENT, ONSET_ENTRY, MOTIF, MOTIF_END, SORT = range(11)
"""Where the state of a ring keeps: entries seen; whether the list is in a loop, since which token, up to which, with
how many entries that belong to it, and how many new ones since; what the last call brought about; the loop's first
entry; and the entry by which the loop was found: its first token, one past its last, and its flags."""
STATE = 11

NOTHING, BEGUN, LEFT = range(3)
"""Events."""


@kernel
def add(
    ring: Integers,
    size: int,
    state: Integers,
    base: int,
    said: int,
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
        first: its first token.
        end: one past its last.
        sort: its flags.
        least: entries over which a list of this sort has collapsed.
        rules: see `thresholds`.
    """
    same, familiar = _count(ring, size, state, base, said)
    slot = state[base + COUNT] % size * FIELDS
    ring[slot + _SAID] = said
    ring[slot + _FIRST] = first
    ring[slot + _FLAGS] = sort
    state[base + COUNT] += 1
    if state[base + LOOPING]:
        _go_on(state, base, familiar, end, rules)
    elif same + 1 >= rules[ENTRY_COPIES] and not sort & CHOICE:
        window = _collapsed(ring, size, state, base, end, least, rules)
        if window:
            _begin(ring, size, state, base, window, first, end)
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


@kernel
def lasts(state: Integers, base: int, position: int, rules: Integers) -> bool:
    """Whether what follows the loop, up to the end of the answer at `position`, is at most one entry that was cut."""
    typical = (state[base + END] - state[base + ONSET]) // state[base + REPEATS]
    return bool(state[base + NEW] == 0 and position - state[base + END] <= max(rules[CUT_TOKENS], 2 * typical))


@kernel
def forget(state: Integers, base: int) -> None:
    """Begins a new list: what was said before no longer counts."""
    state[base + COUNT] = 0


@kernel
def _count(ring: Integers, size: int, state: Integers, base: int, said: int) -> tuple[int, int]:
    """How many entries in the ring say `said`, and whether one of them is in the loop. Marks the latest of them."""
    count = state[base + COUNT]
    oldest = max(count - size, 0)
    same = 0
    familiar = 0
    for entry in range(count - 1, oldest - 1, -1):
        slot = entry % size * FIELDS
        if ring[slot + _SAID] == said:
            if same == 0:
                ring[slot + _FLAGS] |= _AGAIN
                familiar = 1 if entry >= state[base + ONSET_ENTRY] else 0
            same += 1
    return same, familiar


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
        if not flags & _AGAIN:
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
def _begin(ring: Integers, size: int, state: Integers, base: int, window: int, first: int, end: int) -> None:
    count = state[base + COUNT]
    onset = count - window
    oldest = max(count - size, 0)
    while not ring[onset % size * FIELDS + _FLAGS] & _AGAIN:  # Said once: it isn't part of the collapse.
        onset += 1
    while onset > oldest and _is_said(ring, size, ring[(onset - 1) % size * FIELDS + _SAID], onset, count):
        onset -= 1
    state[base + LOOPING] = 1
    state[base + ONSET_ENTRY] = onset
    state[base + ONSET] = ring[onset % size * FIELDS + _FIRST]
    state[base + END] = end
    state[base + REPEATS] = count - onset
    state[base + MOTIF] = first
    state[base + MOTIF_END] = end
    state[base + NEW] = 0
    state[base + EVENT] = BEGUN


@kernel
def _is_said(ring: Integers, size: int, said: int, start: int, stop: int) -> bool:
    for entry in range(start, stop):  # noqa: SIM110 - Numba compiles no generators here.
        if ring[entry % size * FIELDS + _SAID] == said:
            return True
    return False
