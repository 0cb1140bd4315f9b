# SPDX-License-Identifier: Apache-2.0
"""Verbatim loops: is the tail of the tokens periodic?

One lag is followed at a time. A table knows where the last `_GRAM` tokens stood before; the distance is a lag, and
comparing backwards from here says since when the tokens repeat at that lag. From then on each token is compared with
the one a lag before, until one differs. The cost of a token doesn't depend on the period.

The most recent occurrence gives the shortest lag, and a shorter one that doesn't last (a phrase that is repeated inside
the period) ends at the first token that differs, where the longer one is proposed. So a run that is long enough is
found within a few tokens, at its primitive period.
"""

from __future__ import annotations

from vllm_surgery.loops.compiled import Integers, kernel
from vllm_surgery.loops.thresholds import (
    COPIES,
    LONG_COPIES,
    LONG_PERIOD,
    MAX_PERIOD,
    SHORT_PERIOD,
    SHORT_TOKENS,
    TOKENS,
)

RING = 2 * MAX_PERIOD
"""Tokens kept. Twice the period, so that a run is still there in full when a shorter lag has hidden it for a copy."""

SLOTS = 512
"""Places in the table of grams. A gram may lose its place to another; the next token's gram is the next chance, so
fewer places mean some tokens of delay, not a miss: 8 at the longest period."""

_GRAM = 8
"""Tokens that must recur to propose a lag. With 3, loops over alphabets of two or three tokens hide behind accidental
lags: 349 of 400 were missed; with 8 none of 2,400."""

_GRAM_BITS = 32 // _GRAM
_HASH_MASK = 0xFFFFFFFF
_SPREAD = 0x9E3779B1  # 2**32 over the golden ratio, as usual for hashing by multiplication.
_SLOT_SHIFT = 32 - 9  # The highest bits depend on all of the gram; 2**9 is `SLOTS`.
_PLACE_MASK = 0x7FFF  # A slot keeps the lower 15 bits of a position.

POSITION, GRAM, LAG, ONSET, LOOPING, EVENT = range(6)
"""Where the state keeps: tokens seen; hash of the last ones; lag that is followed (0: none) and since when the tokens
are periodic at it; whether that is a loop by now; what made `advance` stop."""
STATE = 6

NOTHING, BEGUN, LEFT = range(3)
"""Events."""


@kernel
def advance(tokens: Integers, start: int, ring: Integers, slots: Integers, state: Integers, rules: Integers) -> int:
    """Reads tokens from `start` on, up to the end or to an event, which it notes in the state.

    Returns:
        The index after the last token read. After `BEGUN` that token belongs to the loop, after `LEFT` it is the first
        outside; `LAG` and `ONSET` are the loop's in either case, and `settle` must be called after `LEFT`.
    """
    state[EVENT] = NOTHING
    for index in range(start, len(tokens)):
        token = tokens[index]
        position = state[POSITION]
        lag = state[LAG]
        ring[position % RING] = token
        state[GRAM] = ((state[GRAM] << _GRAM_BITS) ^ ((token + 1) * _SPREAD)) & _HASH_MASK
        if lag > 0 and ring[(position - lag) % RING] != token:
            if state[LOOPING]:
                state[EVENT] = LEFT
                return index + 1
            lag = 0
            state[LAG] = 0
        _follow(ring, slots, state, position, lag)
        state[POSITION] = position + 1
        if state[LAG] > 0 and not state[LOOPING] and _is_loop(state, rules):
            state[LOOPING] = 1
            state[EVENT] = BEGUN
            return index + 1
    return len(tokens)


@kernel
def settle(ring: Integers, slots: Integers, state: Integers) -> None:
    """Leaves the loop: the token that differed is the first of what comes next."""
    position = state[POSITION]
    state[LOOPING] = 0
    state[LAG] = 0
    _follow(ring, slots, state, position, 0)
    state[POSITION] = position + 1


@kernel
def _follow(ring: Integers, slots: Integers, state: Integers, position: int, lag: int) -> None:
    slot = state[GRAM] >> _SLOT_SHIFT
    if lag == 0 and slots[slot] >= 0:
        proposed = (position - slots[slot]) & _PLACE_MASK
        if 0 < proposed <= MAX_PERIOD and proposed <= position:
            first = _periodic_since(ring, position, proposed)
            if position - first + 1 >= proposed + _GRAM:
                state[LAG] = proposed
                state[ONSET] = first
    slots[slot] = position & _PLACE_MASK


@kernel
def _periodic_since(ring: Integers, position: int, lag: int) -> int:
    """The first token from which on all tokens up to `position` repeat at `lag`, as far as the ring reaches."""
    oldest = max(position - RING + 1, 0)
    place = position
    while place - lag >= oldest and ring[place % RING] == ring[(place - lag) % RING]:
        place -= 1
    return place + 1 - lag


@kernel
def _is_loop(state: Integers, rules: Integers) -> bool:
    lag = state[LAG]
    covered = state[POSITION] - state[ONSET]
    if lag <= rules[SHORT_PERIOD]:
        return bool(covered >= rules[SHORT_TOKENS])
    copies = rules[LONG_COPIES] if lag >= rules[LONG_PERIOD] else rules[COPIES]
    return bool(covered >= rules[TOKENS] and covered >= copies * lag)
