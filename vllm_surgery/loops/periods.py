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

from typing import Final

import numpy as np

from vllm_surgery.loops.kernels import Integers, Layout, Record, Records, kernel
from vllm_surgery.loops.thresholds import MAX_PERIOD

RING: Final = 2 * MAX_PERIOD
"""Tokens kept. Twice the period, so that the beginning of a run is still there when a shorter lag has hidden it for
nearly a copy: with one and a half, the onset came up to 227 tokens late in 8 of 482 nested loops."""

SLOTS: Final = 512
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

Tail = Layout(
    position=0,
    gram=0,
    lag=0,
    onset=0,
    looping=0,
    event=0,
    variety=0,
    ring=(RING, 0, np.int32),
    slots=(SLOTS, -1, np.int16),
)
"""Tokens seen; hash of the last ones; lag that is followed (0: none) and since when the tokens are periodic at it;
whether that is a loop by now; what made `advance` stop; whether the period has many different tokens; the latest
tokens; and where each gram stood last."""

NOTHING, BEGUN, LEFT = range(3)
"""Events."""

UNKNOWN, POOR, RICH = range(3)
"""Varieties of a period."""


@kernel
def advance(tokens: Integers, start: int, tails: Records, rules_record: Records) -> int:
    """Reads tokens from `start` on, up to the end or to an event, which it notes in the tail.

    Returns:
        The index after the last token read. After `BEGUN` that token belongs to the loop, after `LEFT` it is the first
        outside; `lag` and `onset` are the loop's in either case, until the next call.
    """
    tail, rules = tails[0], rules_record[0]
    if tail.event == LEFT:
        _settle(tail)
    tail.event = NOTHING
    for index in range(start, len(tokens)):
        token = tokens[index]
        position = tail.position
        tail.ring[position % RING] = token
        tail.gram = ((tail.gram << _GRAM_BITS) ^ ((token + 1) * _SPREAD)) & _HASH_MASK
        if tail.lag > 0 and tail.ring[(position - tail.lag) % RING] != token:
            if tail.looping:
                tail.looping = 0
                tail.event = LEFT
                return index + 1
            tail.lag = 0
        _follow(tail)
        tail.position = position + 1
        if tail.lag > 0 and not tail.looping and _is_loop(tail, rules):
            tail.looping = 1
            tail.event = BEGUN
            return index + 1
    return len(tokens)


@kernel
def judge_cut(tails: Records, rules_record: Records) -> bool:
    """True if the tokens end in a loop by the lower floors of an answer that was cut."""
    tail, rules = tails[0], rules_record[0]
    if tail.lag == 0 or tail.looping:
        return False
    covered = tail.position - tail.onset
    copies = min(rules.cut_copies, rules.long_copies) if tail.lag >= rules.long_period else rules.cut_copies
    return bool(covered >= rules.cut_tokens and covered >= copies * tail.lag)


@kernel
def _settle(tail: Record) -> None:
    """After a loop was left: the token that differed is the first of what comes next."""
    tail.lag = 0
    _follow(tail)
    tail.position += 1


@kernel
def _follow(tail: Record) -> None:
    position = tail.position
    slot = (tail.gram * _SLOT_FACTOR & _HASH_MASK) >> _SLOT_SHIFT
    if tail.lag == 0 and tail.slots[slot] >= 0:
        proposed = (position - tail.slots[slot]) & _PLACE_MASK
        if 0 < proposed <= MAX_PERIOD and proposed <= position:
            first = _periodic_since(tail, position, proposed)
            if position - first + 1 >= proposed + _GRAM:
                tail.lag = proposed
                tail.variety = UNKNOWN
                tail.onset = first
    tail.slots[slot] = position & _PLACE_MASK


@kernel
def _periodic_since(tail: Record, position: int, lag: int) -> int:
    """The first token from which on all tokens up to `position` repeat at `lag`, as far as the ring reaches."""
    oldest = max(position - RING + 1, 0)
    place = position
    while place - lag >= oldest and tail.ring[place % RING] == tail.ring[(place - lag) % RING]:
        place -= 1
    return place + 1 - lag


@kernel
def _is_loop(tail: Record, rules: Record) -> bool:
    covered = tail.position - tail.onset
    copies = rules.long_copies if tail.lag >= rules.long_period else rules.copies
    if covered < rules.tokens or covered < copies * tail.lag:
        return False
    if tail.variety == UNKNOWN:
        tail.variety = POOR if _is_poor(tail, tail.position - tail.lag, tail.position, rules) else RICH
    return bool(tail.variety == RICH or covered >= rules.poor_tokens)


@kernel
def _is_poor(tail: Record, start: int, stop: int, rules: Record) -> bool:
    """True if the tokens of a period are few different ones."""
    different = 0
    for place in range(start, stop):
        earlier = start
        while tail.ring[earlier % RING] != tail.ring[place % RING]:
            earlier += 1
        different += earlier == place
        if different > rules.poor_variety:
            return False
    # A row of zeros says the same tokens again and again; a short phrase says each once.
    return bool(different <= rules.least_variety or 4 * different < 3 * (stop - start))
