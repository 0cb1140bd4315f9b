# SPDX-License-Identifier: Apache-2.0
"""The statistics of the reports: every rate and mean comes with an interval, every comparison is paired."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from collections.abc import Sequence

LEVEL = 0.95
SEED = 20261124
"""Of the bootstrap, so that a report can be made again to the digit."""


@dataclass(frozen=True)
class Estimate:
    """A figure and its interval at `LEVEL`."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Paired:
    """The same prompts under two arms.

    Attributes:
        rescued: looped in the first arm only.
        newly: looped in the second arm only.
        both: looped in both.
        p: of McNemar's exact test, two-sided: how likely so uneven a split of the changed prompts is by chance.
    """

    rescued: int
    newly: int
    both: int
    p: float


def wilson(successes: int, total: int) -> Estimate:
    """A rate with Wilson's score interval. `total` must not be 0."""
    interval = stats.binomtest(successes, total).proportion_ci(LEVEL, method="wilson")
    return Estimate(successes / total, float(interval.low), float(interval.high))


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> Paired:
    """Compares two arms prompt by prompt."""
    pairs = list(zip(before, after, strict=True))
    rescued, newly = pairs.count((True, False)), pairs.count((False, True))
    changed = rescued + newly
    p = float(stats.binomtest(rescued, changed).pvalue) if changed else 1.0
    return Paired(rescued, newly, pairs.count((True, True)), p)


def ratio_over_groups(sums: Sequence[float], counts: Sequence[int]) -> Estimate:
    """A mean per token over groups of tokens, with a bootstrap interval (BCa) that resamples whole groups.

    Args:
        sums: of each group's values.
        counts: of each group's tokens.
    """
    value = float(np.sum(sums) / np.sum(counts))
    if len(sums) < 2 or np.ptp(np.asarray(sums) / np.asarray(counts)) == 0:
        return Estimate(value, value, value)
    found = stats.bootstrap(
        (np.asarray(sums, float), np.asarray(counts, float)),
        lambda total, tokens, axis=-1: np.sum(total, axis=axis) / np.sum(tokens, axis=axis),
        paired=True,
        vectorized=True,
        confidence_level=LEVEL,
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return Estimate(value, float(found.low), float(found.high))
