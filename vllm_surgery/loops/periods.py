# SPDX-License-Identifier: Apache-2.0
"""Verbatim loops: the tail of the tokens is periodic.

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
    LEAST_VARIETY,
    LONG_COPIES,
    LONG_PERIOD,
    MAX_PERIOD,
    POOR_TOKENS,
    POOR_VARIETY,
    TOKENS,
)

RING = 2 * MAX_PERIOD
"""Tokens kept. Twice the period, so that the beginning of a run is still there when a shorter lag has hidden it for
nearly a copy: with one and a half, the onset came up to 227 tokens late in 8 of 482 nested loops."""

SLOTS = 512
"""Places in the table of grams. A gram may lose its place to another; the next token's gram is the next chance, so
fewer places mean some tokens of delay, not a miss: 8 at the longest period."""

_GRAM = 16
"""Tokens that must recur to propose a lag. With 3, loops over alphabets of two or three tokens hide behind accidental
lags: 349 of 400 were missed. With 8, two tokens give only 256 grams, each of which stood nearby by accident, and
periods above that were missed; with 16 there are more grams than `MAX_PERIOD`."""

_GRAM_BITS = 32 // _GRAM
_HASH_MASK = 0xFFFFFFFF
_SPREAD = 0x9E3779B1  # 2**32 over the golden ratio, as usual for hashing by multiplication.
_SLOT_FACTOR, _SLOT_SHIFT = (
    0x45D9F3B,
    32 - 9,
)  # Old tokens are in the high bits alone: mixed once more. 2**9 is `SLOTS`.
_PLACE_MASK = 0x7FFF  # A slot keeps the lower 15 bits of a position.

POSITION, GRAM, LAG, ONSET, LOOPING, EVENT, _VARIETY = range(7)
"""Where the state keeps: tokens seen; hash of the last ones; lag that is followed (0: none) and since when the tokens
are periodic at it; whether that is a loop by now; what made `advance` stop; whether the
period has many different tokens."""
STATE = 7

NOTHING, BEGUN, LEFT = range(3)
"""Events."""

_UNKNOWN, _POOR, _RICH = range(3)


@kernel
def advance(tokens: Integers, start: int, ring: Integers, slots: Integers, state: Integers, rules: Integers) -> int:
    """Reads tokens from `start` on, up to the end or to an event, which it notes in the state.

    Returns:
        The index after the last token read. After `BEGUN` that token belongs to the loop, after `LEFT` it is the first
        outside; `LAG` and `ONSET` are the loop's in either case, until the next call.
    """
    if state[EVENT] == LEFT:
        _settle(ring, slots, state)
    state[EVENT] = NOTHING
    for index in range(start, len(tokens)):
        token = tokens[index]
        position = state[POSITION]
        lag = state[LAG]
        ring[position % RING] = token
        state[GRAM] = ((state[GRAM] << _GRAM_BITS) ^ ((token + 1) * _SPREAD)) & _HASH_MASK
        if lag > 0 and ring[(position - lag) % RING] != token:
            if state[LOOPING]:
                state[LOOPING] = 0
                state[EVENT] = LEFT
                return index + 1
            lag = 0
            state[LAG] = 0
        _follow(ring, slots, state, position, lag)
        state[POSITION] = position + 1
        if state[LAG] > 0 and not state[LOOPING] and _is_loop(ring, state, rules):
            state[LOOPING] = 1
            state[EVENT] = BEGUN
            return index + 1
    return len(tokens)


@kernel
def _settle(ring: Integers, slots: Integers, state: Integers) -> None:
    """After a loop was left: the token that differed is the first of what comes next."""
    position = state[POSITION]
    state[LAG] = 0
    _follow(ring, slots, state, position, 0)
    state[POSITION] = position + 1


@kernel
def _follow(ring: Integers, slots: Integers, state: Integers, position: int, lag: int) -> None:
    slot = (state[GRAM] * _SLOT_FACTOR & _HASH_MASK) >> _SLOT_SHIFT
    if lag == 0 and slots[slot] >= 0:
        proposed = (position - slots[slot]) & _PLACE_MASK
        if 0 < proposed <= MAX_PERIOD and proposed <= position:
            first = _periodic_since(ring, position, proposed)
            if position - first + 1 >= proposed + _GRAM:
                state[LAG] = proposed
                state[_VARIETY] = _UNKNOWN
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
def _is_loop(ring: Integers, state: Integers, rules: Integers) -> bool:
    lag = state[LAG]
    covered = state[POSITION] - state[ONSET]
    copies = rules[LONG_COPIES] if lag >= rules[LONG_PERIOD] else rules[COPIES]
    if covered < rules[TOKENS] or covered < copies * lag:
        return False
    if state[_VARIETY] == _UNKNOWN:
        state[_VARIETY] = _POOR if _is_poor(ring, state[POSITION] - lag, state[POSITION], rules) else _RICH
    return bool(state[_VARIETY] == _RICH or covered >= rules[POOR_TOKENS])


@kernel
def _is_poor(ring: Integers, start: int, stop: int, rules: Integers) -> bool:
    """Whether the tokens of a period are few different ones."""
    different = 0
    for place in range(start, stop):
        earlier = start
        while ring[earlier % RING] != ring[place % RING]:
            earlier += 1
        different += earlier == place
        if different > rules[POOR_VARIETY]:
            return False
    # A row of zeros says the same tokens again and again; a short phrase says each once.
    return bool(different <= rules[LEAST_VARIETY] or 4 * different < 3 * (stop - start))
