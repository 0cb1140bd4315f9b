# SPDX-License-Identifier: Apache-2.0
"""Rankings look into as much as their time has room for, say what they left out, and look into a little in any case."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vllm_surgery.localization.ranking import allowance as module
from vllm_surgery.localization.ranking.allowance import LEAST, Allowance
from vllm_surgery.localization.ranking.ranker import in_turn
from vllm_surgery.localization.transcripts import Passage

if TYPE_CHECKING:
    from collections.abc import Iterable

ITEMS = list(range(20))


class Clock:
    """Time that passes when work is done."""

    now = 100.0

    def work(self, items: Iterable[int]) -> list[int]:
        """A second for each."""
        done = []
        for item in items:
            self.now += 1
            done.append(item)
        return done


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module.time, "monotonic", lambda: made.now)
    return made


def test_without_an_end_all_are_taken(clock: Clock) -> None:
    allowance = Allowance()
    assert clock.work(allowance.within(ITEMS, "texts")) == ITEMS
    assert allowance.cut == []


def test_when_the_time_is_up_the_rest_is_left_out_and_said(clock: Clock) -> None:
    allowance = Allowance(8)
    assert clock.work(allowance.within(ITEMS, "texts")) == ITEMS[:8]
    assert allowance.cut == ["8 of 20 texts were looked into: the time for rankings was up"]


def test_a_few_are_taken_in_any_case(clock: Clock) -> None:
    assert clock.work(Allowance(0).within(ITEMS, "texts")) == ITEMS[:LEAST]


def test_parts_share_the_time_and_what_one_leaves_is_the_next_ones(clock: Clock) -> None:
    allowance = Allowance(15)
    assert len(clock.work(allowance.within(ITEMS, "loops", 1 / 3))) == 5
    assert len(clock.work(allowance.within(ITEMS[:2], "texts", 1 / 2))) == 2
    assert len(clock.work(allowance.within(ITEMS, "answers"))) == 8
    assert len(allowance.cut) == 2


def test_the_rest_is_an_allowance_too(clock: Clock) -> None:
    whole = Allowance(10)
    clock.work(ITEMS[:6])
    assert len(clock.work(whole.rest().within(ITEMS, "texts"))) == 4


def test_it_tells_of_each_item(clock: Clock) -> None:
    told: list[str] = []
    clock.work(Allowance(told=told.append).within(ITEMS[:2], "texts"))
    assert told == ["texts, 1 of 2", "texts, 2 of 2"]


def test_what_is_left_out_is_some_of_both_sorts_and_one_that_loops_comes_first() -> None:
    looping, healthy = ([Passage([sort, number], 1) for number in range(3)] for sort in (1, 2))
    assert in_turn(looping[:2], healthy) == [looping[0], healthy[0], looping[1], healthy[1], healthy[2]]
