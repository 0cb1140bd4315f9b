# SPDX-License-Identifier: Apache-2.0
"""Successive halving (Jamieson and Talwalkar 2016): many candidates get a short look, the best of them a longer one."""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vllm_surgery.localization.candidates import Candidate
    from vllm_surgery.localization.search.evaluator import Look
    from vllm_surgery.localization.search.measurements import Measure

KEEP = 1 / 3
"""Of each round. Looks get twice as long, so most is spent on the first round, where there is most to choose from."""
LEAST = 2
"""So many stay in every round: the first looks are short, and chance is large in them."""
ROUNDS = 3
MOST = 1000


def rungs(full: Look, count: int = ROUNDS) -> list[Look]:
    """`count` looks, each about twice as long as the one before, the last of them the whole."""
    shares = [2.0 ** -(count - 1 - number) for number in range(count)]
    last = count - 1
    return [
        full._replace(
            answers=max(1, math.ceil(full.answers * share)),
            texts=max(1, math.ceil(full.texts * share)),
            tasks=full.tasks and number == last,
        )
        for number, share in enumerate(shares)
    ]


def affordable(share: float, whole: float, rounds: int = ROUNDS) -> int:
    """How many candidates can go through all rounds, `MOST` at most.

    Args:
        share: of the budget that may be spent.
        whole: the share that one look at everything costs.
        rounds: looks.
    """
    return bisect_right(range(1, MOST + 1), share, key=lambda count: whole * _looks(count, rounds))


def _looks(count: int, rounds: int) -> float:
    """What all rounds of so many candidates cost, in looks at everything."""
    total = 0.0
    for number in range(rounds):
        total += count * 2.0 ** -(rounds - 1 - number)
        count = _left(count)
    return total


def _left(count: int) -> int:
    """How many of a round's candidates are in the next one."""
    return min(count, max(LEAST, math.ceil(count * KEEP)))


def halve(
    candidates: Sequence[Candidate],
    looks: Sequence[Look],
    measure: Callable[[Candidate, Look], Measure | None],
    rank: Callable[[Measure], tuple[Any, ...]],
) -> list[Measure]:
    """The candidates that were left in the last round, best first.

    Args:
        candidates: in the order in which they are looked at.
        looks: one for each round.
        measure: None where the budget is used up, or the candidate can't be tried: it is out.
        rank: what measures of one round are sorted by.
    """
    left = list(candidates)
    found: list[Measure] = []
    for look in looks:
        measured = [measure(candidate, look) for candidate in left]
        round_ = sorted((one for one in measured if one is not None), key=rank)
        # When the budget ends in the middle of a round, what an earlier one found still counts.
        found = round_ or found
        left = [one.candidate for one in round_[: _left(len(round_))]]
    return found
