# SPDX-License-Identifier: Apache-2.0
"""A budget is time or answers, and what was written down is counted again to the same value."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import refusal
from vllm_surgery.errors import UsageError
from vllm_surgery.localization.search.budget import Asked, Budget


@pytest.mark.parametrize(
    ("text", "seconds", "answers"),
    [
        ("90", 5400, math.inf),
        ("90m", 5400, math.inf),
        ("1.5h", 5400, math.inf),
        (" 0.5m ", 30, math.inf),
        ("4000g", math.inf, 4000),
    ],
)
def test_minutes_hours_and_generations(text: str, seconds: float, answers: float) -> None:
    budget = Budget.parse(text)
    assert (budget.seconds, budget.answers) == (seconds, answers)


@pytest.mark.parametrize(
    "text", ["x", "soon", "-5", "5d", "0", "0.0h", "1e3", "90 m", "nan", "inf", "4000 generations"]
)
def test_what_is_no_budget_is_refused(text: str) -> None:
    said = refusal(lambda: Budget.parse(text), UsageError)
    assert said == f"--budget {text}: write minutes (90), hours (1.5h) or generations (4000g)"


def test_without_a_limit_nothing_is_used() -> None:
    budget = Budget()
    budget.spend(1e9, Asked(10**9))
    assert budget.used == 0


def test_the_scarcer_of_two_limits_counts() -> None:
    budget = Budget(seconds=100, answers=10)
    budget.spend(20, Asked(5))
    assert budget.used == 0.5


@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 10**6), st.integers(0, 10**6))))
def test_the_same_spending_again_goes_through_the_same_values(spent: list[tuple[float, int, int]]) -> None:
    once, again = Budget(3600.0, 5000), Budget(3600.0, 5000)
    passed = []
    for seconds, *asked in spent:
        once.spend(seconds, Asked(*asked))
        passed.append(once.used)
    for (seconds, *asked), used in zip(spent, passed, strict=True):
        again.spend(seconds, Asked(*asked))
        assert again.used == used
    assert passed == sorted(passed)


def test_an_answer_to_a_task_counts_by_its_length() -> None:
    budget = Budget(answers=100)
    budget.task_weight = 0.1
    budget.spend(0, Asked(20, 70))
    assert budget.spent_answers == 90
    assert budget.used == pytest.approx(0.27)
    assert budget.after(Asked(3, 10)) == pytest.approx(0.31)


def test_pace_is_by_length_too() -> None:
    """Of 30 answers in 30 seconds ten are to tasks and half as long, so one to a probe for loops takes 1.2 seconds."""
    budget = Budget(seconds=100)
    budget.task_weight = 0.5
    budget.spend(30, Asked(20, 10))
    assert budget.after(Asked(10)) == pytest.approx(0.42)
    assert budget.after(Asked(0, 10)) == pytest.approx(0.36)
