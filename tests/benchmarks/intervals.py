# SPDX-License-Identifier: Apache-2.0
"""The interval of a median, from nothing but the order of the figures."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

CONFIDENCE = 0.95


@dataclass(frozen=True)
class MedianInterval:
    """A median, and between which two of the figures that of all such figures lies.

    Source: order statistics (W. R. Thompson, Annals of Mathematical Statistics 7 (1936), 122-128). It holds for figures
    of any distribution that are independent of each other.

    Attributes:
        value: of the figures themselves.
        low, high: the bounds.
        confidence: of the interval: at least `CONFIDENCE` from six figures on, and less with fewer.
    """

    value: float
    low: float
    high: float
    confidence: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> MedianInterval:
        """From at least one figure, in any order."""
        ordered, left_out = sorted(figures), 0
        while _confidence(len(ordered), left_out + 1) >= CONFIDENCE:
            left_out += 1
        low, high = ordered[left_out], ordered[-1 - left_out]
        return cls(median(ordered), low, high, _confidence(len(ordered), left_out))

    def in_words(self, form: str) -> str:
        """The median and its bounds, each formatted by `form`."""
        return f"{self.value:{form}} ({self.low:{form}} to {self.high:{form}})"


def _confidence(number: int, left_out: int) -> float:
    """That the median lies between the figures that are left when so many are left out at either end."""
    if 2 * left_out >= number:
        return 0.0
    return float(1 - 2 * sum(comb(number, below) for below in range(left_out + 1)) / 2**number)
