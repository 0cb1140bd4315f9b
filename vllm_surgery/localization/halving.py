# SPDX-License-Identifier: Apache-2.0
"""Successive halving (Jamieson and Talwalkar 2016): many candidates get a short look, the best of them a longer one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vllm_surgery.localization.candidates import Candidate
    from vllm_surgery.localization.lab import Look
    from vllm_surgery.localization.measures import Measure

KEEP = 1 / 3
"""Of each round. Looks get twice as long, so most is spent on the first round, where there is most to choose from."""
LEAST = 3
"""So many stay in every round: the first looks are short, and chance is large in them."""
ROUNDS = 3


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


def affordable(most: int, share: float, costs: Sequence[float]) -> int:
    """How many candidates can go through all rounds.

    Args:
        most: candidates that there are.
        share: of the budget that may be spent.
        costs: the share that the look of each round costs, as if nothing of the look before were kept: that leaves
            room for what each visit takes besides its answers.
    """
    return next((count for count in range(most, 0, -1) if _planned(count, costs) <= share), 0)


def _planned(count: int, costs: Sequence[float]) -> float:
    """The share of the budget that so many candidates take."""
    whole = 0.0
    for cost in costs:
        whole += count * cost
        count = min(count, _staying(count))
    return whole


def _staying(count: int) -> int:
    return max(LEAST, math.ceil(count * KEEP))


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
        left = [one.candidate for one in round_[: _staying(len(round_))]]
    return found
