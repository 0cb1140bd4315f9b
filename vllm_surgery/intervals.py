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

    What can't be said is NaN: a ratio to nothing; and the interval of what never happened, since a bootstrap draws from
    what did.
    """

    value: float
    low: float
    high: float


def wilson(successes: int, total: int) -> Estimate:
    """A rate with Wilson's score interval (Wilson 1927). `total` must not be 0."""
    rate = successes / total
    spread = Z * math.sqrt(rate * (1 - rate) / total + Z**2 / (4 * total**2))
    middle, scale = rate + Z**2 / (2 * total), 1 + Z**2 / total
    low = 0.0 if successes == 0 else (middle - spread) / scale
    high = 1.0 if successes == total else (middle + spread) / scale
    return Estimate(rate, low, high)
