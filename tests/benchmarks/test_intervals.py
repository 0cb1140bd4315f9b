# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from tests.benchmarks.intervals import mcnemar, ratio_over_groups, wilson


def test_wilson_of_five_in_ten():
    # 0.5 plus or minus 0.2634: the textbook's value for z = 1.96.
    rate = wilson(5, 10)
    assert (rate.value, rate.low, rate.high) == pytest.approx((0.5, 0.2366, 0.7634), abs=1e-4)


def test_wilson_of_none_starts_at_nought_and_ends_above():
    assert wilson(0, 24).low == pytest.approx(0)
    assert wilson(0, 24).high == pytest.approx(0.138, abs=1e-3)


def test_mcnemar_counts_and_p():
    before = [True] * 8 + [False] * 2 + [True] * 3
    after = [False] * 7 + [True] + [True, False] + [True] * 3
    paired = mcnemar(before, after)
    assert (paired.rescued, paired.newly, paired.both) == (7, 1, 4)
    assert paired.p == pytest.approx(2 * (1 + 8) / 2**8)


def test_mcnemar_without_a_change():
    assert mcnemar([True, False], [True, False]).p == 1


def test_ratio_weighs_by_tokens():
    mean = ratio_over_groups([10.0, 2.0, 3.0, 5.0], [10, 1, 4, 5])
    assert mean.value == 1.0
    assert mean.low < 1.0 < mean.high


def test_ratio_of_equal_groups_has_no_width():
    assert ratio_over_groups([0.0, 0.0], [3, 4]).high == 0.0
