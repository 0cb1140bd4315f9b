# SPDX-License-Identifier: Apache-2.0
"""The statistics say what SciPy and published examples say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from vllm_surgery.evaluation.analysis import statistics
from vllm_surgery.evaluation.analysis.statistics import (
    compare,
    mcnemar,
    pairs_needed,
    ratio_over_groups,
    sign_flip,
    survival,
)
from vllm_surgery.intervals import paired_difference, wilson

counts = st.integers(1, 400).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total)))


@given(counts)
def test_wilson_is_scipys(count: tuple[int, int]) -> None:
    successes, total = count
    oracle = stats.binomtest(successes, total).proportion_ci(0.95, method="wilson")
    found = wilson(successes, total)
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high), abs=1e-12)
    assert found.low <= found.value <= found.high


def test_wilson_of_a_published_example() -> None:
    """Newcombe 1998, table I: 81 of 263."""
    found = wilson(81, 263)
    assert (round(found.low, 4), round(found.high, 4)) == (0.2553, 0.3662)


@pytest.mark.parametrize("rates", [(0.01, 0.01), (0.04, 0.02), (0.1, 0.02), (0.2, 0.2), (0.02, 0.3)])
def test_a_paired_difference_is_in_its_interval_about_as_often_as_is_said(rates: tuple[float, float]) -> None:
    lose, win = rates
    within = 0.0
    for lost in range(51):
        for won in range(51 - lost):
            found = paired_difference(lost, won, 50)
            if found.low <= win - lose <= found.high:
                within += stats.multinomial.pmf([lost, won, 50 - lost - won], 50, [lose, win, 1 - lose - win])
    assert within >= 0.94


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_a_paired_difference_lies_within_what_can_be(lost: int, won: int, same: int) -> None:
    found = paired_difference(lost, won, lost + won + same + 1)
    assert -1 <= found.low <= found.value <= found.high <= 1


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_scipys_sign_test(rescued: int, newly: int) -> None:
    oracle = stats.binomtest(rescued, rescued + newly).pvalue if rescued + newly else 1.0
    assert mcnemar(rescued, newly) == pytest.approx(oracle, rel=1e-9)


@given(st.lists(st.integers(-4, 4), min_size=2, max_size=9))
def test_the_sign_flip_is_scipys_permutation_test(differences: list[int]) -> None:
    values = np.array(differences, float)
    oracle = stats.permutation_test((values,), np.sum, permutation_type="samples", n_resamples=np.inf)
    # SciPy doubles the smaller tail; the null distribution is symmetric, so that is the share of the absolute sums.
    assert sign_flip(values) == pytest.approx(float(oracle.pvalue), abs=1e-9)


def test_many_clusters_are_drawn_and_agree_with_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.array([1, 2, -1, 3, 1, 1, -2, 2, 1, 4], float)
    exact = sign_flip(values)
    monkeypatch.setattr(statistics, "MAX_EXACT_CLUSTERS", 0)
    assert sign_flip(values) == pytest.approx(exact, abs=0.01)


def test_the_bootstrap_over_probes_is_scipys() -> None:
    source = np.random.default_rng(5)
    before = source.random((12, 8)) < source.random((12, 1))
    after = before & (source.random((12, 8)) < 0.6)
    oracle = stats.bootstrap(
        ((after.mean(1) - before.mean(1)),), np.mean, method="percentile", n_resamples=20000, rng=source
    ).confidence_interval
    probes = np.repeat([f"probe {number}" for number in range(12)], 8)
    found = compare(before.ravel().tolist(), after.ravel().tolist(), probes.tolist()).difference
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high), abs=0.01)
    assert found.value == pytest.approx(after.mean() - before.mean())


def test_seeds_of_one_probe_are_no_evidence_of_their_own() -> None:
    """Eight rescued answers of one probe: McNemar's test is impressed, the one over probes isn't."""
    found = compare([True] * 8, [False] * 8, ["constellations"] * 8)
    assert found.p < 0.01
    assert found.clustered_p == 1.0


def test_pairs_are_counted() -> None:
    found = compare([True, True, False, True], [False, True, True, False], ["a", "a", "b", "b"])
    assert (found.pairs, found.rescued, found.newly, found.both, found.clusters) == (4, 2, 1, 1, 2)
    assert found.difference.value == -0.25
    assert found.ratio.value == pytest.approx(2 / 3)


def test_probes_are_counted_apart_from_their_subjects() -> None:
    looped, probes = [True, True, False, True], ["a.one", "a.one", "a.two", "b"]
    alone, shared = compare(looped, looped, probes), compare(looped, looped, ["a", "a", "a", "b"], probes)
    assert (alone.probes, alone.clusters, alone.unit) == (3, 3, "probes")
    assert (shared.probes, shared.clusters, shared.unit) == (3, 2, "subjects")


def test_a_ratio_to_nothing_isnt_said() -> None:
    found = compare([False, False], [True, False], ["a", "b"])
    assert math.isnan(found.ratio.value)
    assert math.isnan(found.ratio.high)


def test_what_never_happened_has_no_interval() -> None:
    cured = compare([True, False, True], [False] * 3, ["a", "b", "c"])
    assert (cured.ratio.value, math.isnan(cured.ratio.high)) == (0.0, True)
    assert cured.difference.low < -0.5
    quiet = compare([False] * 3, [False] * 3, ["a", "b", "c"])
    assert (quiet.difference.value, math.isnan(quiet.difference.low)) == (0.0, True)


@pytest.mark.parametrize("probes", [1, 4, 40])
def test_what_is_the_same_for_all_probes_has_no_interval(probes: int) -> None:
    names = [f"probe {number}" for number in range(probes)] * 2
    cured = compare([True] * 2 * probes, [True, False] * probes, sorted(names))
    assert (cured.difference.value, cured.ratio.value) == (-0.5, 0.5)
    assert all(map(math.isnan, (cured.difference.low, cured.difference.high, cured.ratio.low, cured.ratio.high)))
    alike = ratio_over_groups([3.0] * probes, [1] * probes)
    assert (alike.value, math.isnan(alike.low), math.isnan(alike.high)) == (3.0, True, True)


def test_pairs_needed_find_it_as_often_as_said() -> None:
    """Connor's figure, held against the exact test by simulation."""
    needed = pairs_needed(0.20, 0.08)
    assert needed is not None
    drawn = np.random.default_rng(3).multinomial(needed, (0.20, 0.08, 0.72), 4000)
    found = np.mean([mcnemar(int(rescued), int(newly)) < 0.05 for rescued, newly, _ in drawn])
    assert 0.72 < found < 0.85  # The exact test is a little more careful than the formula.


def test_no_difference_needs_no_number() -> None:
    assert pairs_needed(0.1, 0.1) is None


def test_a_mean_over_groups_resamples_groups() -> None:
    found = ratio_over_groups([1.0, 9.0, 2.0, 4.0], [10, 10, 10, 10])
    assert found.value == pytest.approx(0.4)
    assert found.low < found.value < found.high


@given(st.lists(st.tuples(st.integers(1, 30), st.booleans()), min_size=1, max_size=30))
def test_survival_is_scipys_kaplan_meier(answers: list[tuple[int, bool]]) -> None:
    looped = [length for length, event in answers if event]
    ended = [length for length, event in answers if not event]
    oracle = stats.ecdf(stats.CensoredData(looped, right=ended)).sf
    for token, share in survival(answers)[1:]:
        assert share == pytest.approx(float(oracle.evaluate(token)), abs=1e-12)
