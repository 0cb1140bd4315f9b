# SPDX-License-Identifier: Apache-2.0
"""From single units to small sets: other gains, pairs, one more unit while it helps, and none that isn't needed."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

from vllm_surgery.localization.candidates import Candidate, distinct, joined, without
from vllm_surgery.patch.units import MASK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from vllm_surgery.localization.candidates import Target
    from vllm_surgery.localization.search.measurements import Measurement
    from vllm_surgery.patch.units import Gain

MAX_SHRUNK_UNITS = 16
"""A set of more units isn't taken apart one by one; the search has tried it in other sizes."""


def other_gains(candidate: Candidate, gains: Iterable[Gain]) -> list[Candidate]:
    """A single unit with every gain that can be tried with its kind."""
    ((unit, _),) = candidate.gains
    return [Candidate.of({unit: gain}, "gain") for gain in gains if gain != MASK or unit.kind == "experts"]


def weaker(candidate: Candidate, dose: float) -> Candidate | None:
    """The same edit with every gain nearer to 1: `dose` of the way. None where there are masks: they know no degree."""
    if any(gain == MASK for _, gain in candidate.gains):
        return None
    return Candidate.of({target: 1.0 + dose * (float(gain) - 1.0) for target, gain in candidate.gains}, "dose")


def pair_parts(best: Sequence[Candidate], ranked: Sequence[Candidate], count: int) -> list[Candidate]:
    """Parts of pairs: the best, and the first `count` other units of a ranking.

    What ranks a unit looks at it alone. Of two units that each keep a loop going it may say that one should be
    amplified, since that weakens the other; so those are also tried silent.
    """
    known = {target for one in best for target, _ in one.gains}
    first: dict[Target, Candidate] = {}
    for one in ranked:
        first.setdefault(one.gains[0][0], one)
    others = [one for target, one in first.items() if target not in known][:count]
    return [*best, *(each for one in others for each in _also_silent(one))]


def pairs(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Every two of them together, unless they name a unit in common; those that stand first come first."""
    places = sorted(combinations(range(len(candidates)), 2), key=lambda pair: (sum(pair), pair))
    found = (joined(candidates[first], candidates[second], "pair") for first, second in places)
    return distinct(pair for pair in found if pair is not None)


def _also_silent(single: Candidate) -> list[Candidate]:
    ((unit, gain),) = single.gains
    amplified = gain != MASK and gain > 1
    return [single, Candidate.of({unit: 0.0}, single.origin)] if amplified else [single]


def grow(
    start: Measurement,
    more: Sequence[Candidate],
    most: int,
    measure: Callable[[Sequence[Candidate]], Sequence[Measurement | None]],
    rank: Callable[[Measurement], tuple[Any, ...]],
) -> Measurement:
    """Adds the edit that helps most, again and again, as long as one leaves fewer loops.

    Args:
        start: what to add to.
        more: what may be added.
        most: units that the set may come to.
        measure: gives None for those for which the budget is used up.
        rank: what measures are sorted by.
    """
    best = start
    while True:
        larger = [joined(best.candidate, one, "grown") for one in more]
        fitting = [one for one in larger if one is not None and one.units <= most]
        measured = [one for one in measure(fitting) if one is not None]
        found = min(measured, key=rank, default=None)
        if found is None or rank(found)[:2] >= rank(best)[:2]:
            return best
        best = found


def shrink(
    best: Measurement,
    measure: Callable[[Candidate], Measurement | None],
    rank: Callable[[Measurement], tuple[Any, ...]],
) -> Measurement:
    """Takes away units that the edit does as well without: the smallest edit is the one to ship.

    Args:
        best: the edit.
        measure: gives None where the budget is used up.
        rank: what measures are sorted by; its first two places say whether an edit is as good.
    """
    shrunk = 1 < best.candidate.units <= MAX_SHRUNK_UNITS
    while shrunk:
        shrunk = False
        for target, _ in best.candidate.gains:
            smaller = measure(without(best.candidate, target, "shrunk"))
            if smaller is not None and rank(smaller)[:2] <= rank(best)[:2]:
                best, shrunk = smaller, smaller.candidate.units > 1
                break
    return best
