# SPDX-License-Identifier: Apache-2.0
"""A budget is shared out over the parts of a search beforehand, and the bar moves with each of them."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from vllm_surgery.localization.search.budget import Asked, Budget
from vllm_surgery.localization.search.stages import BASELINE_OF_WHOLE, SHARES, Stages


def test_shares_rise_to_the_whole() -> None:
    assert all(one <= two for one, two in pairwise(SHARES.values()))
    assert list(SHARES.values())[-1] == 1


def test_what_the_baseline_left_is_shared_out() -> None:
    budget = Budget(answers=100)
    stages = Stages(budget)
    budget.spend(0, Asked(40))
    stages.enter("layers", 3)
    assert stages.bound("layers") == pytest.approx(0.4 + 0.6 * SHARES["layers"])
    assert stages.bound("rest") == 1
    assert stages.left("singles") == pytest.approx(0.6 * SHARES["singles"])
    budget.spend(0, Asked(10))
    assert (stages.is_over("layers"), stages.is_over("singles")) == (True, False)


def test_a_baseline_that_took_all_leaves_nothing_to_any_part() -> None:
    budget = Budget(answers=10)
    stages = Stages(budget)
    budget.spend(0, Asked(12))
    stages.enter("layers", 1)
    assert all(map(stages.is_over, SHARES))
    assert stages.position == 1


def test_what_asks_nothing_has_a_time_where_the_budget_is_one() -> None:
    in_time, in_answers = Stages(Budget(seconds=1000)), Stages(Budget(answers=10))
    for stages in (in_time, in_answers):
        stages.enter("layers", 1)
    assert in_time.seconds_left("units") == pytest.approx(1000 * SHARES["units"])
    in_time.budget.spend(990, Asked(1))
    assert in_time.seconds_left("units") == 0
    assert in_answers.seconds_left("units") == math.inf


def test_what_each_part_spent_is_told_apart() -> None:
    budget = Budget()
    stages = Stages(budget)
    budget.spend(10, Asked(5))
    stages.enter("layers", 1)
    budget.spend(20, Asked(6))
    stages.enter("units", 1)
    stages.enter("layers", 1)
    budget.spend(1, Asked(1))
    stages.close()
    assert stages.spent == {"baseline": (10, 5), "layers": (21, 7), "units": (0, 0)}


def test_without_a_limit_the_bar_goes_by_parts_and_never_back() -> None:
    stages = Stages(Budget())
    places = [stages.position]
    stages.step(0.5)
    places.append(stages.position)
    for part in SHARES:
        stages.enter(part, 2)
        for _ in range(3):  # More than were planned.
            places.append(stages.position)
            stages.step()
    assert places == sorted(places)
    assert places[1] == BASELINE_OF_WHOLE / 2
    assert stages.position == 1


def test_with_a_limit_the_bar_is_what_was_spent_and_what_is_under_way() -> None:
    budget = Budget(seconds=100)
    stages = Stages(budget)
    budget.note(10, Asked(3))
    assert stages.position == 0.1
    budget.spend(12, Asked(4))
    assert stages.position == 0.12
    assert budget.after(Asked(8)) == pytest.approx(0.36)
