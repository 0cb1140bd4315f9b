# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random

import pytest

from tests.benchmarks.intervals import MedianInterval


@pytest.mark.parametrize(
    ("number", "low", "high", "confidence"),
    # Of 20 figures the textbook's interval is from the 6th to the 15th.
    [(1, 1, 1, 0.0), (5, 1, 5, 0.9375), (6, 1, 6, 0.96875), (8, 1, 8, 0.9921875), (20, 6, 15, 0.9586)],
)
def test_bounds_are_those_of_the_textbook(number: int, low: float, high: float, confidence: float) -> None:
    found = MedianInterval.of(random.Random(0).sample(range(1, number + 1), number))
    assert (found.value, found.low, found.high) == ((number + 1) / 2, low, high)
    assert found.confidence == pytest.approx(confidence, abs=1e-4)


def test_an_interval_is_told_with_its_median() -> None:
    assert MedianInterval.of([1.0, 3.0, 2.0]).in_words(".1f") == "2.0 (1.0 to 3.0)"
