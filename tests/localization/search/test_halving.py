# SPDX-License-Identifier: Apache-2.0
"""Successive halving: looks get longer, the best stay, and nothing is planned that the budget has no room for."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from tests.localization.fake import candidate, measure_of, neuron
from vllm_surgery.localization.search.evaluator import Look
from vllm_surgery.localization.search.halving import KEEP, LEAST, MOST, ROUNDS, affordable, halve, rungs

if TYPE_CHECKING:
    from typing import Any

    from vllm_surgery.localization.candidates import Candidate
    from vllm_surgery.localization.search.measurements import Measure

LOOK = Look(48, 12, tasks=True)
MANY = [candidate(neuron(0, index)) for index in range(30)]


def loops_of(one: Candidate) -> int:
    """The candidate's own number: the first is the best."""
    return one.gains[0][0].index


def rank(one: Measure) -> tuple[Any, ...]:
    return (one.loops.looped, one.candidate.id)


class Looking:
    """Notes who is looked at how closely, until there is no budget left."""

    def __init__(self, budget: int = 10**6) -> None:
        self.seen: list[tuple[Candidate, Look]] = []
        self.budget = budget

    def __call__(self, one: Candidate, look: Look) -> Measure | None:
        if len(self.seen) == self.budget:
            return None
        self.seen.append((one, look))
        return measure_of(one, loops_of(one), answers=look.answers)

    def of(self, look: Look) -> list[Candidate]:
        return [one for one, how in self.seen if how == look]


def test_each_look_is_twice_as_long_and_only_the_last_asks_tasks() -> None:
    assert rungs(LOOK) == [Look(12, 3), Look(24, 6), LOOK]


@given(st.integers(1, 500), st.integers(0, 40), st.booleans(), st.integers(1, 5))
def test_looks_grow_to_the_whole_and_are_never_empty(answers: int, texts: int, tasks: bool, count: int) -> None:
    full = Look(answers, max(1, texts), tasks)
    looks = rungs(full, count)
    assert looks[-1] == full
    assert len(looks) == count
    assert all(one.answers >= 1 and one.texts >= 1 for one in looks)
    assert all(one.answers <= two.answers <= 2 * one.answers for one, two in pairwise(looks))


def test_a_third_stays_in_each_round_and_the_best_come_first() -> None:
    looking, looks = Looking(), rungs(LOOK)
    found = halve(MANY[::-1], looks, looking, rank)
    assert looking.of(looks[0]) == MANY[::-1]
    assert looking.of(looks[1]) == MANY[:10]
    assert looking.of(looks[2]) == MANY[:4]
    assert [one.candidate for one in found] == MANY[:4]


def test_so_many_stay_at_least() -> None:
    looking, looks = Looking(), rungs(LOOK)
    halve(MANY[:5], looks, looking, rank)
    assert [len(looking.of(look)) for look in looks] == [5, LEAST, LEAST]


def test_when_the_budget_ends_between_rounds_the_round_before_counts() -> None:
    found = halve(MANY[:9], rungs(LOOK), Looking(9), rank)
    assert [one.candidate for one in found] == MANY[:9]


def test_when_the_budget_ends_within_a_round_those_that_came_in_it_count() -> None:
    found = halve(MANY[:9], rungs(LOOK), Looking(11), rank)
    assert [one.candidate for one in found] == MANY[:2]
    assert {one.loops.answers for one in found} == {24}


def test_a_candidate_that_cannot_be_tried_is_out() -> None:
    looking = Looking()
    found = halve(MANY[:4], rungs(LOOK), lambda one, look: looking(one, look) if one != MANY[0] else None, rank)
    assert [one.candidate for one in found] == MANY[1 : 1 + LEAST]


def test_nothing_to_look_at() -> None:
    assert halve([], rungs(LOOK), Looking(), rank) == []


@given(st.floats(0, 30), st.integers(1, ROUNDS))
def test_what_is_planned_is_within_the_budget_and_one_more_is_not(room: float, rounds: int) -> None:
    def spent(count: int) -> float:
        looking = Looking()
        halve([candidate(neuron(1, index)) for index in range(count)], rungs(LOOK, rounds), looking, rank)
        return sum(look.answers / LOOK.answers for _, look in looking.seen)

    count = affordable(room, 1.0, rounds)
    assert spent(count) <= room
    assert spent(count + 1) > room


def test_without_a_limit_all_can_go_through() -> None:
    assert affordable(0.3, 0.0) == affordable(math.inf, 0.1) == MOST


def test_a_part_that_has_used_up_its_share_plans_nothing() -> None:
    assert affordable(0.0, 0.01) == 0


def test_most_is_spent_on_the_first_round_where_there_is_most_to_choose_from() -> None:
    looking, looks = Looking(), rungs(LOOK)
    halve(MANY, looks, looking, rank)
    spent = [sum(look.answers for _, look in looking.seen if look == each) for each in looks]
    assert spent == sorted(spent, reverse=True)
    assert math.isclose(KEEP, 1 / 3)
