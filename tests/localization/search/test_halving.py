# SPDX-License-Identifier: Apache-2.0
"""Successive halving: fidelities get longer, the best stay, and nothing is planned that the budget has no room for."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from tests.localization.fake import candidate, measure_of, neuron
from vllm_surgery.localization.search.evaluator import Fidelity
from vllm_surgery.localization.search.halving import (
    KEPT_SHARE,
    MAX_CANDIDATES,
    MIN_KEPT,
    ROUNDS,
    affordable,
    halve,
    looks,
    rungs,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from vllm_surgery.localization.candidates import Candidate
    from vllm_surgery.localization.search.measurements import Measurement

FULL = Fidelity(48, 12, tasks=True)
MANY = [candidate(neuron(0, index)) for index in range(30)]


def loops_of(one: Candidate) -> int:
    """The candidate's own number: the first is the best."""
    return one.gains[0][0].index


def rank(one: Measurement) -> tuple[Any, ...]:
    return (one.loops.looped, one.candidate.id)


class Looking:
    """Notes who is looked at how closely, until there is no budget left."""

    def __init__(self, budget: int = 10**6) -> None:
        self.seen: list[tuple[Candidate, Fidelity]] = []
        self.budget = budget

    def __call__(self, candidates: Sequence[Candidate], fidelity: Fidelity) -> list[Measurement | None]:
        return [self.look(one, fidelity) for one in candidates]

    def look(self, one: Candidate, fidelity: Fidelity) -> Measurement | None:
        if len(self.seen) == self.budget:
            return None
        self.seen.append((one, fidelity))
        return measure_of(one, loops_of(one), answers=fidelity.answers)

    def of(self, fidelity: Fidelity) -> list[Candidate]:
        return [one for one, how in self.seen if how == fidelity]


def test_each_look_is_twice_as_long_and_only_the_last_asks_tasks() -> None:
    assert rungs(FULL) == [Fidelity(12, 3), Fidelity(24, 6), FULL]


@given(st.integers(1, 500), st.integers(0, 40), st.booleans(), st.integers(1, 5))
def test_looks_grow_to_the_whole_and_are_never_empty(answers: int, texts: int, tasks: bool, count: int) -> None:
    full = Fidelity(answers, max(1, texts), tasks)
    fidelities = rungs(full, count)
    assert fidelities[-1] == full
    assert len(fidelities) == count
    assert all(one.answers >= 1 and one.texts >= 1 for one in fidelities)
    assert all(one.answers <= two.answers <= 2 * one.answers for one, two in pairwise(fidelities))


def test_a_third_stays_in_each_round_and_the_best_come_first() -> None:
    looking, fidelities = Looking(), rungs(FULL)
    found = halve(MANY[::-1], fidelities, looking, rank)
    assert looking.of(fidelities[0]) == MANY[::-1]
    assert looking.of(fidelities[1]) == MANY[:10]
    assert looking.of(fidelities[2]) == MANY[:4]
    assert [one.candidate for one in found] == MANY[:4]


def test_so_many_stay_at_least() -> None:
    looking, fidelities = Looking(), rungs(FULL)
    halve(MANY[:5], fidelities, looking, rank)
    assert [len(looking.of(fidelity)) for fidelity in fidelities] == [5, MIN_KEPT, MIN_KEPT]


def test_when_the_budget_ends_between_rounds_the_round_before_counts() -> None:
    found = halve(MANY[:9], rungs(FULL), Looking(9), rank)
    assert [one.candidate for one in found] == MANY[:9]


def test_when_the_budget_ends_within_a_round_those_that_came_in_it_count() -> None:
    found = halve(MANY[:9], rungs(FULL), Looking(11), rank)
    assert [one.candidate for one in found] == MANY[:2]
    assert {one.loops.answers for one in found} == {24}


def test_a_candidate_that_cannot_be_tried_is_out() -> None:
    looking = Looking()

    def look(candidates: Sequence[Candidate], fidelity: Fidelity) -> list[Measurement | None]:
        return [looking.look(one, fidelity) if one != MANY[0] else None for one in candidates]

    found = halve(MANY[:4], rungs(FULL), look, rank)
    assert [one.candidate for one in found] == MANY[1 : 1 + MIN_KEPT]


def test_nothing_to_look_at() -> None:
    assert halve([], rungs(FULL), Looking(), rank) == []


TASKS = 70


def costs(fidelities: Sequence[Fidelity]) -> list[int]:
    """Answers of a candidate in each round, beside those that it has given before."""
    answers = [0, *(one.answers + TASKS * one.tasks for one in fidelities)]
    return [more - less for less, more in pairwise(answers)]


@given(st.integers(0, 3000), st.integers(1, ROUNDS))
def test_what_is_planned_is_within_the_budget_and_one_more_is_not(room: int, rounds: int) -> None:
    fidelities = rungs(FULL, rounds)

    def spent(count: int) -> int:
        looking, closest = Looking(), {}
        halve([candidate(neuron(1, index)) for index in range(count)], fidelities, looking, rank)
        assert len(looking.seen) == looks(count, rounds)
        for one, fidelity in looking.seen:
            closest[one.id] = fidelity.answers + TASKS * fidelity.tasks  # What is known of it isn't asked again.
        return sum(closest.values())

    count = affordable(room, costs(fidelities))
    assert spent(count) <= room
    assert spent(count + 1) > room


def test_tasks_which_only_the_last_round_asks_leave_room_for_many_in_the_first() -> None:
    """24 sets, each at first by 6 of 24 answers: 438 answers with the tasks of the three that are left."""
    each = costs(rungs(Fidelity(24, 12, tasks=True)))
    assert each == [6, 6, 12 + TASKS]
    assert (affordable(437, each), affordable(438, each)) == (23, 24)


def test_without_a_limit_all_can_go_through() -> None:
    assert affordable(0.3, [0.0, 0.0]) == affordable(math.inf, [0.1]) == MAX_CANDIDATES


def test_a_part_that_has_used_up_its_share_plans_nothing() -> None:
    assert affordable(0.0, [0.01]) == 0


def test_most_is_spent_on_the_first_round_where_there_is_most_to_choose_from() -> None:
    looking, fidelities = Looking(), rungs(FULL)
    halve(MANY, fidelities, looking, rank)
    spent = [sum(fidelity.answers for _, fidelity in looking.seen if fidelity == each) for each in fidelities]
    assert spent == sorted(spent, reverse=True)
    assert math.isclose(KEPT_SHARE, 1 / 3)
