# SPDX-License-Identifier: Apache-2.0
"""A rate and its interval, as every report, page and panel has them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

LEVEL = 0.95
Z = NormalDist().inv_cdf(0.5 + LEVEL / 2)


@dataclass(frozen=True)
class Estimate:
    """A figure and its interval at `LEVEL`.

    What can't be said is NaN: a ratio to nothing; and the interval of what never happened, or is the same for all that
    is drawn from, since a bootstrap can't draw what it hasn't seen.
    """

    value: float
    low: float
    high: float


def wilson(successes: int, total: int, z: float = Z) -> Estimate:
    """A rate with Wilson's score interval (Wilson 1927).

    Args:
        successes: of `total`.
        total: not 0.
        z: how many standard errors the interval reaches; by default those of `LEVEL`.
    """
    rate = successes / total
    spread = z * math.sqrt(rate * (1 - rate) / total + z**2 / (4 * total**2))
    middle, scale = rate + z**2 / (2 * total), 1 + z**2 / total
    low = 0.0 if successes == 0 else (middle - spread) / scale
    high = 1.0 if successes == total else (middle + spread) / scale
    return Estimate(rate, low, high)


def difference(first: tuple[int, int], second: tuple[int, int], z: float = Z) -> Estimate:
    """By how much a rate is larger than another, with Newcombe's hybrid score interval (1998, method 10).

    Args:
        first: successes and their total, which isn't 0.
        second: the same of other cases, that it is compared with.
        z: as for `wilson`.
    """
    one, other = wilson(*first, z), wilson(*second, z)
    value = one.value - other.value
    below = math.hypot(one.value - one.low, other.high - other.value)
    above = math.hypot(one.high - one.value, other.value - other.low)
    return Estimate(value, value - below, value + above)


def paired_difference(lost: int, won: int, total: int, z: float = Z) -> Estimate:
    """By how much a rate rises when the same cases are judged again, with Agresti and Min's interval (2005, Wald+2).

    Each of the four outcomes of a case counts half a case more, so that cases which all stay as they are don't look
    like proof that none ever changes.

    Args:
        lost: cases that succeed the first time alone.
        won: cases that succeed the second time alone.
        total: of the cases, those that stay as they are among them; not 0.
        z: as for `wilson`.
    """
    cases = total + 2
    middle = (won - lost) / cases
    reach = z * math.sqrt(lost + won + 1 - (won - lost) ** 2 / cases) / cases
    return Estimate((won - lost) / total, max(-1.0, middle - reach), min(1.0, middle + reach))


def split_level(looks: int) -> float:
    """Standard errors of an interval that is looked at so often and may mislead, over all looks, as rarely as one look.

    Bonferroni's bound: cautious, and right however the looks depend on each other.
    """
    return NormalDist().inv_cdf(1 - (1 - LEVEL) / (2 * looks))
