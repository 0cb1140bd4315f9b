# SPDX-License-Identifier: Apache-2.0
"""The statistics of a trial: every rate has an interval, every comparison is paired, and subjects are resampled.

Seeds of one probe are not independent of each other, nor are probes about one subject: a list that the model can't
recall loops under most of them. So a difference between two arms is judged over subjects, not over answers. Numpy
alone; SciPy is the tests' oracle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vllm_surgery.intervals import LEVEL, Estimate, Z

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Numbers: TypeAlias = NDArray[np.float64]

BOOTSTRAP_DRAWS = 10_000
"""Of a bootstrap: the ends of its interval then move by less than a tenth of a point from one seed to another."""
BOOTSTRAP_SEED = 20261124
"""Of a bootstrap, so that a report can be made again to the digit."""
MAX_EXACT_CLUSTERS = 16
"""Probes up to which all ways to flip their signs are gone through (65,536); beyond it `BOOTSTRAP_DRAWS` of them."""
POWER = 0.8


@dataclass(frozen=True)
class Paired:
    """The same probes and seeds under two arms.

    Attributes:
        pairs: how many there are.
        rescued: it happened in the first arm only.
        newly: it happened in the second arm only.
        both: it happened in both.
        p: of McNemar's exact test, two-sided: how likely so uneven a split of what changed is by chance. It takes
            answers for independent of each other.
        probes: different ones.
        clusters: different subjects: fewer than probes where several are about one thing.
        clustered_p: of the sign-flip test over subjects, two-sided: the same question, without taking answers about one
            for independent. With c subjects it can't be below 2 / 2**c.
        difference: rate in the second arm less rate in the first, interval from a bootstrap over subjects; none where
            it is the same for each.
        ratio: rate in the second arm over rate in the first, likewise.
        needed: pairs that a trial would need to find a difference like this one in four of five times; None where
            there is none to find.
    """

    pairs: int
    rescued: int
    newly: int
    both: int
    p: float
    probes: int
    clusters: int
    clustered_p: float
    difference: Estimate
    ratio: Estimate
    needed: int | None

    @property
    def unit(self) -> str:
        """What the clusters are, in words."""
        return "subjects" if self.clusters < self.probes else "probes"


def mcnemar(rescued: int, newly: int) -> float:
    """The two-sided p of McNemar's exact test: a fair coin's, for the pairs that changed."""
    changed = rescued + newly
    tail = sum(math.comb(changed, count) for count in range(min(rescued, newly) + 1))
    return float(min(1.0, 2 * tail / 2**changed))


def compare(
    before: Sequence[bool], after: Sequence[bool], clusters: Sequence[str], probes: Sequence[str] | None = None
) -> Paired:
    """Compares two arms pair by pair.

    Args:
        before: whether it happened under the first arm, for each pair. At least one pair.
        after: the same under the second.
        clusters: the subject that each pair is about.
        probes: the probe that each pair is of; None where each subject has one.
    """
    pairs = list(zip(before, after, strict=True))
    rescued, newly = pairs.count((True, False)), pairs.count((False, True))
    first, second, sizes = _sums(before, after, clusters)
    difference, ratio = _bootstrap(first, second, sizes)
    return Paired(
        pairs=len(pairs),
        rescued=rescued,
        newly=newly,
        both=pairs.count((True, True)),
        p=mcnemar(rescued, newly),
        probes=len(set(clusters if probes is None else probes)),
        clusters=len(sizes),
        clustered_p=sign_flip(second - first),
        difference=difference,
        ratio=ratio,
        needed=pairs_needed(rescued / len(pairs), newly / len(pairs)),
    )


def sign_flip(differences: Numbers) -> float:
    """The two-sided p of the sign-flip test (Fisher 1935): how often random signs give as large a sum.

    Args:
        differences: one for each cluster.
    """
    moved = differences[differences != 0]
    if not moved.size:
        return 1.0
    seen = float(abs(moved.sum())) - 1e-9
    if moved.size <= MAX_EXACT_CLUSTERS:
        bits = np.arange(2**moved.size)[:, None] >> np.arange(moved.size) & 1
        return float(np.mean(np.abs((1 - 2 * bits) @ moved) >= seen))
    signs = np.random.default_rng(BOOTSTRAP_SEED).choice((-1.0, 1.0), (BOOTSTRAP_DRAWS, moved.size))
    return float((1 + np.sum(np.abs(signs @ moved) >= seen)) / (1 + BOOTSTRAP_DRAWS))


def pairs_needed(rescued: float, newly: float, power: float = POWER) -> int | None:
    """Pairs at which McNemar's test finds this at the usual 5 %, with probability `power` (Connor 1987).

    Args:
        rescued: share of the pairs that change one way.
        newly: share that changes the other way.
        power: between 0 and 1.
    """
    changed, difference = rescued + newly, rescued - newly
    if difference == 0:
        return None
    reach = NormalDist().inv_cdf(power)
    spread = Z * math.sqrt(changed) + reach * math.sqrt(max(0.0, changed - difference**2))
    return math.ceil((spread / difference) ** 2)


def ratio_over_groups(sums: Sequence[float], counts: Sequence[int]) -> Estimate:
    """A mean per token over groups of tokens, its interval from a bootstrap that resamples whole groups.

    Args:
        sums: of each group's values.
        counts: of each group's tokens.
    """
    totals, sizes = np.asarray(sums, float), np.asarray(counts, float)
    drawn = _resamples(len(totals))
    return _interval(float(totals.sum() / sizes.sum()), (drawn @ totals) / (drawn @ sizes))


def _sums(before: Sequence[bool], after: Sequence[bool], clusters: Sequence[str]) -> tuple[Numbers, Numbers, Numbers]:
    """For each cluster: how often it happened before and after, and how many pairs there are."""
    names, places = np.unique(np.asarray(clusters), return_inverse=True)
    weights = (np.asarray(before, float), np.asarray(after, float), None)
    first, second, sizes = (np.bincount(places, each, len(names)).astype(float) for each in weights)
    return first, second, sizes


def _bootstrap(first: Numbers, second: Numbers, sizes: Numbers) -> tuple[Estimate, Estimate]:
    drawn = _resamples(len(sizes))
    before, after, pairs = drawn @ first, drawn @ second, drawn @ sizes
    difference = _interval(float((second.sum() - first.sum()) / sizes.sum()), (after - before) / pairs)
    if not first.sum():
        nothing = Estimate(math.nan, math.nan, math.nan)
        return (difference if second.sum() else Estimate(0.0, math.nan, math.nan)), nothing
    if not second.sum():
        return difference, Estimate(0.0, math.nan, math.nan)
    # A draw of probes that never looped before has no ratio; with none after either it is left out.
    ratios = np.divide(after, before, out=np.full_like(after, np.inf), where=before > 0)
    return difference, _interval(float(second.sum() / first.sum()), ratios[(before > 0) | (after > 0)])


@lru_cache(maxsize=16)
def _resamples(clusters: int) -> Numbers:
    """Bootstrap weights ``[draws, clusters]``: the same for every comparison of as many clusters."""
    return (
        np.random.default_rng(BOOTSTRAP_SEED)
        .multinomial(clusters, np.full(clusters, 1 / clusters), BOOTSTRAP_DRAWS)
        .astype(float)
    )


def _interval(value: float, draws: Numbers) -> Estimate:
    """The quantiles of the draws; no interval where all draws are the same, which would promise what nobody can."""
    low, high = np.quantile(draws, (0.5 - LEVEL / 2, 0.5 + LEVEL / 2), method="inverted_cdf")
    return Estimate(value, float(low), float(high)) if low < high else Estimate(value, math.nan, math.nan)


def survival(answers: Iterable[tuple[int, bool]]) -> list[tuple[int, float]]:
    """The share of answers not yet in a loop, from each token on at which it falls.

    An answer that ends without a loop says nothing of what would have come after, so it leaves the count where it ends.

    Args:
        answers: for each its first loop's onset and True, or its length and False.

    Returns:
        Steps of the curve, from ``(0, 1.0)`` on.
    """
    known = sorted(answers)
    steps, share, left = [(0, 1.0)], 1.0, len(known)
    for token in sorted({length for length, _ in known}):
        here = [looped for length, looped in known if length == token]
        if any(here):
            share *= 1 - sum(here) / left
            steps.append((token, share))
        left -= len(here)
    return steps
