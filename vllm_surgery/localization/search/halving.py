# SPDX-License-Identifier: Apache-2.0
"""Successive halving (Jamieson and Talwalkar 2016): many candidates at low fidelity, the best at a higher one."""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vllm_surgery.localization.candidates import Candidate
    from vllm_surgery.localization.search.evaluator import Fidelity
    from vllm_surgery.localization.search.measurements import Measurement

KEPT_SHARE = 1 / 3
"""Of each round. Fidelity doubles, so most is spent on the first round, where there is most to choose from."""
MIN_KEPT = 2
"""Candidates that stay in every round: in the first ones much is chance."""
ROUNDS = 3
MAX_CANDIDATES = 1000


def rungs(full: Fidelity, count: int = ROUNDS) -> list[Fidelity]:
    """`count` fidelities, each about twice the one before, the last of them the full one."""
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


def affordable(share: float, costs: Sequence[float]) -> int:
    """The number of candidates that can go through all rounds, `MAX_CANDIDATES` at most.

    Args:
        share: of the budget that may be spent.
        costs: of each round, the share that a candidate in it costs beside what earlier rounds know of it.
    """
    return bisect_right(range(1, MAX_CANDIDATES + 1), share, key=lambda count: _cost(count, costs))


def _cost(count: int, costs: Sequence[float]) -> float:
    """Cost of all rounds of so many candidates."""
    total = 0.0
    for cost in costs:
        total += count * cost
        count = _left(count)
    return total


def looks(count: int, rounds: int = ROUNDS) -> int:
    """How many measurements all rounds of so many candidates are."""
    total = 0
    for _ in range(rounds):
        total += count
        count = _left(count)
    return total


def _left(count: int) -> int:
    """The number of a round's candidates that are in the next one."""
    return min(count, max(MIN_KEPT, math.ceil(count * KEPT_SHARE)))


def halve(
    candidates: Sequence[Candidate],
    fidelities: Sequence[Fidelity],
    measure: Callable[[Sequence[Candidate], Fidelity], Sequence[Measurement | None]],
    rank: Callable[[Measurement], tuple[Any, ...]],
) -> list[Measurement]:
    """The candidates that were left in the last round, best first.

    Args:
        candidates: in the order in which they are measured.
        fidelities: one for each round.
        measure: gives None for those for which the budget is used up, or which can't be tried: they are out.
        rank: what measures of one round are sorted by.
    """
    left = list(candidates)
    found: list[Measurement] = []
    for fidelity in fidelities:
        measured = measure(left, fidelity)
        round_ = sorted((one for one in measured if one is not None), key=rank)
        # When the budget ends in the middle of a round, what an earlier one found still counts.
        found = round_ or found
        left = [one.candidate for one in round_[: _left(len(round_))]]
    return found
