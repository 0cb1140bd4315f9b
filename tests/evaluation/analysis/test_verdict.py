# SPDX-License-Identifier: Apache-2.0
"""The rule: what it takes to be called a help, and each condition that takes the word away."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from vllm_surgery.evaluation.analysis.outcomes import Rates
from vllm_surgery.evaluation.analysis.side_effects import Ordinary, Tasks
from vllm_surgery.evaluation.analysis.statistics import Paired, compare
from vllm_surgery.evaluation.analysis.verdict import MIN_SUBJECTS, RULE, Evidence, judge
from vllm_surgery.intervals import Estimate, wilson

PROBES = [f"probe {number // 8}" for number in range(80)]


def fall(before: int, after: int) -> Paired:
    """Of 80 answers to ten probes so many loop, the same number for each probe."""
    return compare([n % 8 < before for n in range(80)], [n % 8 < after for n in range(80)], PROBES)


def rates(looped: int, entries: float) -> Rates:
    return Rates(80, {}, wilson(looped, 80), 0, wilson(looped, 80), 0, 100, 0, entries)


def ordinary(looped: int) -> Ordinary:
    return Ordinary(rates(looped, 3), 1.0, 80)


GOOD = Evidence(
    ends=fall(6, 2),
    ever=fall(6, 3),
    against_shams=fall(6, 2),
    tasks=[Tasks(30, 20, [], [], 1.0, 30, 30)],
    ordinary=(ordinary(1), ordinary(1)),
    rates=(rates(60, 8), rates(20, 8)),
)


def test_a_cure() -> None:
    verdict = judge(GOOD)
    assert verdict.word == "fewer loops"
    assert [condition.holds for condition in verdict.conditions] == [True] * 6


@pytest.mark.parametrize(
    ("change", "word", "place"),
    [
        ({"ends": fall(6, 6)}, "no effect shown", 0),
        ({"ends": fall(2, 6)}, "more loops", 0),
        ({"ever": fall(6, 6)}, "no effect shown", 1),
        ({"against_shams": fall(2, 2)}, "no effect shown", 2),
        ({"tasks": [Tasks(30, 18, ["a"], [], 0.5, 28, 28)]}, "fewer loops, at a cost", 3),
        ({"ordinary": (ordinary(1), ordinary(2))}, "fewer loops, at a cost", 4),
        ({"rates": (rates(60, 8), rates(20, 5))}, "fewer loops, at a cost", 5),
    ],
)
def test_one_condition_that_doesnt_hold(change: dict[str, Any], word: str, place: int) -> None:
    verdict = judge(replace(GOOD, **change))
    assert verdict.word == word
    assert verdict.conditions[place].holds is False


def all_change(subjects: int, before: bool, after: bool) -> Evidence:
    """One answer about each subject, and all of them change."""
    names = [f"subject {number}" for number in range(subjects)]
    paired = compare([before] * subjects, [after] * subjects, names)
    return replace(GOOD, ends=paired, ever=paired, against_shams=paired)


@pytest.mark.parametrize("subjects", range(1, MIN_SUBJECTS))
def test_too_few_subjects_show_no_effect(subjects: int) -> None:
    cured, harmed = judge(all_change(subjects, True, False)), judge(all_change(subjects, False, True))
    assert (cured.word, harmed.word) == ("no effect shown", "no effect shown")
    says = f"(1) the rate changes by -100.0 points (no interval), but too few subjects to show an effect: {subjects} of"
    assert (cured.conditions[0].says, cured.conditions[0].holds) == (f"{says} at least 6", False)


def test_enough_subjects_that_all_change_show_one() -> None:
    cured, harmed = (judge(all_change(MIN_SUBJECTS, before, not before)) for before in (True, False))
    assert (cured.word, harmed.word) == ("fewer loops", "more loops")
    assert cured.conditions[0].says == "(1) the rate changes by -100.0 points (no interval)"


def test_many_answers_about_one_subject_are_one_subject() -> None:
    paired = compare([True] * 80, [False] * 80, ["one"] * 80)
    assert judge(replace(GOOD, ends=paired)).word == "no effect shown"


def test_without_shams_nothing_is_called_a_cure() -> None:
    assert judge(replace(GOOD, against_shams=None)).word == "no effect shown"


def test_costs_that_nobody_asked_for_arent_held_against_it() -> None:
    verdict = judge(replace(GOOD, tasks=[], ordinary=None))
    assert verdict.word == "fewer loops"
    assert [condition.holds for condition in verdict.conditions[3:5]] == [None, None]


def test_a_small_fall_isnt_enough() -> None:
    small = replace(GOOD.ends, difference=Estimate(-0.02, -0.025, -0.015))
    assert judge(replace(GOOD, ends=small)).word == "no effect shown"


def test_the_rule_names_the_numbers_that_the_code_uses() -> None:
    assert f"at least {MIN_SUBJECTS} subjects" in RULE
    assert "at least 3 points" in RULE
    assert "at most 3 % of all" in RULE
    assert "three quarters of its different entries" in RULE
