# SPDX-License-Identifier: Apache-2.0
"""The choice among what a search found: by size, on prompts of its own, beside shams."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.localization.fake import FakeModel, candidate, lab_in, measure_of, neuron, settings_in
from vllm_surgery.localization.choice import Finalist, _best, choose, finalists_of
from vllm_surgery.localization.settings import SearchSettings
from vllm_surgery.patch.units import Unit
from vllm_surgery.planning.guard import guard_of

if TYPE_CHECKING:
    from pathlib import Path

    from vllm_surgery.localization.candidates import Candidate
    from vllm_surgery.localization.search.measurements import Measurement
    from vllm_surgery.model.checkpoint import ModelFolder

pytestmark = pytest.mark.usefixtures("no_waiting_for_disks")

SETTINGS = SearchSettings()
CAUSE = neuron(1, 5)


def many(units: int, layer: int = 0) -> Candidate:
    return candidate(*(neuron(layer, index) for index in range(units)))


def finalist(units: int, looped: int, sham: Measurement | None = None, kl: float = 0.01) -> Finalist:
    one = many(units)
    return Finalist(measure_of(one, looped), measure_of(one, looped, kl, base=50, answers=100), sham)


def test_finalists_are_the_best_of_each_size_and_the_best_of_all() -> None:
    measured = [measure_of(many(units), looped) for units, looped in ((1, 8), (2, 7), (5, 1), (6, 2), (9, 0), (40, 3))]
    assert [one.candidate.units for one in finalists_of(measured, SETTINGS)] == [1, 2, 5, 6, 9, 40]


def test_an_edit_that_costs_too_much_is_no_finalist() -> None:
    measured = [measure_of(many(1), 0, kl=1.0), measure_of(many(2), 5)]
    assert [one.candidate.units for one in finalists_of(measured, SETTINGS)] == [2]


def test_an_edit_that_does_nothing_where_it_was_found_is_no_finalist() -> None:
    measured = [measure_of(many(1), 8), measure_of(many(2), 10), measure_of(many(5), 11)]
    assert {one.loops.base for one in measured} == {10}
    assert [one.candidate.units for one in finalists_of(measured, SETTINGS)] == [1]


def sham(looped: int) -> Measurement:
    return measure_of(candidate(neuron(2, 2)), looped, base=50, answers=100)


def test_an_edit_that_does_no_more_than_its_sham_is_not_taken() -> None:
    chosen, why = _best([finalist(1, 30, sham(30)), finalist(2, 20, sham(19))], SETTINGS)
    assert chosen is None
    assert why == "on the choice's probes no edit within the bounds leaves fewer answers in a loop than its sham"
    chosen, why = _best([finalist(1, 30, sham(31)), finalist(2, 20, sham(19))], SETTINGS)
    assert chosen is not None
    assert (chosen.found.candidate.units, why) == (1, None)


@pytest.mark.parametrize(
    ("loops", "units"),
    [
        ({1: 12, 30: 10}, 1),  # Within two points of the best: the smaller one.
        ({1: 13, 30: 10}, 30),
        ({1: 30, 3: 11, 30: 10}, 3),
    ],
)
def test_a_smaller_edit_is_taken_that_does_about_as_well(loops: dict[int, int], units: int) -> None:
    chosen, why = _best([finalist(size, looped) for size, looped in loops.items()], SETTINGS)
    assert chosen is not None
    assert (chosen.found.candidate.units, why) == (units, None)


def test_an_edit_that_does_nothing_on_other_prompts_is_not_taken() -> None:
    chosen, why = _best([finalist(1, 48)], SETTINGS)
    assert chosen is None
    assert why == "on the choice's probes the best edit leaves 48 of 100 answers in a loop, the unpatched model 50"


def test_an_edit_that_costs_too_much_on_other_prompts_is_not_taken() -> None:
    assert _best([finalist(1, 0, kl=1.0)], SETTINGS) == (
        None,
        "no edit that was found stays within the bounds of its side effects on the choice's probes",
    )


def test_each_finalist_is_measured_beside_a_sham_of_its_size(tmp_path: Path, tiny: ModelFolder) -> None:
    model, settings = FakeModel(causes=frozenset({CAUSE}), room=4), settings_in(tmp_path)
    evaluator, cure, other = lab_in(tmp_path / "choice", model, settings), candidate(CAUSE), many(2)
    measured = [measure_of(cure, 0), measure_of(other, 9)]
    choice = choose(measured, evaluator, settings, tiny, guard_of(tiny))
    assert choice.chosen is not None
    assert choice.chosen.found.candidate == cure
    assert [(one.chosen_by.loops.looped == 0, one.sham is not None) for one in choice.finalists] == [
        (True, True),
        (False, True),
    ]
    (beside,) = (one.sham for one in choice.finalists if one.found.candidate == cure)
    assert beside is not None
    ((unit, gain),) = beside.candidate.gains
    assert isinstance(unit, Unit)
    assert (unit.layer, gain, beside.loops.looped) == (CAUSE.layer, 0.0, beside.loops.base)
    assert unit != CAUSE


def test_a_layer_without_room_leaves_an_edit_without_a_sham(tmp_path: Path, tiny: ModelFolder) -> None:
    model, settings = FakeModel(causes=frozenset({neuron(0, 1)})), settings_in(tmp_path)
    evaluator = lab_in(tmp_path / "choice", model, settings)
    choice = choose([measure_of(many(6), 0)], evaluator, settings, tiny, guard_of(tiny))
    assert [one.sham for one in choice.finalists] == [None]
    assert "leave no room" in choice.notes[0]
