# SPDX-License-Identifier: Apache-2.0
"""A whole search on a model made of rules: it finds what was hidden, and says so where there is nothing."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.localization.fake import (
    LAYERS,
    PROBES,
    FakeModel,
    candidate,
    every_single,
    lab_in,
    measure_of,
    neuron,
    search_in,
    settings_in,
)
from vllm_surgery.errors import EngineError
from vllm_surgery.localization.attribution import Attribution
from vllm_surgery.localization.search.budget import Budget
from vllm_surgery.localization.search.search import Search
from vllm_surgery.localization.search.spending import SPENT_FILE
from vllm_surgery.localization.search.stages import SHARES, UNITS, Stages

if TYPE_CHECKING:
    from pathlib import Path

    from vllm_surgery.localization.candidates import Target
    from vllm_surgery.localization.search.search import SearchResult
    from vllm_surgery.model.checkpoint import ModelFolder

pytestmark = [pytest.mark.usefixtures("no_waiting_for_disks"), pytest.mark.slow]  # Whole searches.

CAUSE, SECOND, OTHER = neuron(1, 5), neuron(2, 3), neuron(0, 7)
ODD = frozenset({OTHER, neuron(1, 0), neuron(2, 4)})
"""Units that something is the matter with."""
ANSWERS, LOOPED = 2 * PROBES, 2 * PROBES * 2 // 3
WHOLE = ANSWERS + 4
"""Answers of the closest look, tasks among them."""


def units_of(found: SearchResult) -> set[Target]:
    assert found.best is not None, found.why_none
    return {target for target, _ in found.best.candidate.gains}


def test_it_finds_the_unit_wherever_the_ranking_has_it(tmp_path: Path, tiny: ModelFolder) -> None:
    found = search_in(tmp_path, FakeModel(causes=frozenset({CAUSE})), tiny, every_single())
    assert units_of(found) == {CAUSE}
    assert found.best is not None
    assert (found.best.loops.base, found.best.loops.looped) == (LOOPED, 0)
    assert found.why_none is None
    assert found.kept == [("neurons", CAUSE.layer)]
    assert found.front[0].loops.looped == 0


def test_a_ranking_that_names_it_with_a_gain_of_no_use_still_finds_it(tmp_path: Path, tiny: ModelFolder) -> None:
    model = FakeModel(causes=frozenset({CAUSE}))
    found = search_in(tmp_path, model, tiny, Attribution([candidate(CAUSE, gain=3.0)]))
    assert units_of(found) == {CAUSE}
    assert found.best is not None
    assert found.best.candidate.origin == "gain"


def test_it_finds_two_units_of_which_each_alone_is_enough_for_loops(tmp_path: Path, tiny: ModelFolder) -> None:
    model = FakeModel(causes=frozenset({CAUSE, SECOND}))
    found = search_in(tmp_path, model, tiny, every_single(OTHER, CAUSE, SECOND))
    assert units_of(found) == {CAUSE, SECOND}
    assert found.kept == [("neurons", layer) for layer in range(LAYERS)]  # No layer alone makes a difference.


def test_units_that_cure_a_part_each_are_joined(tmp_path: Path, tiny: ModelFolder) -> None:
    found = search_in(tmp_path, FakeModel(helpers={CAUSE: 0, SECOND: 1}), tiny, every_single())
    assert units_of(found) == {CAUSE, SECOND}


def test_of_a_set_that_cures_what_is_not_needed_is_dropped(tmp_path: Path, tiny: ModelFolder) -> None:
    model = FakeModel(causes=frozenset({CAUSE, SECOND}))
    whole = candidate(CAUSE, SECOND, OTHER, neuron(0, 1), origin="set")
    found = search_in(tmp_path, model, tiny, Attribution([candidate(OTHER)], [whole]))
    assert units_of(found) == {CAUSE, SECOND}


def test_where_nothing_cures_there_is_no_edit_and_the_reason(tmp_path: Path, tiny: ModelFolder) -> None:
    found = search_in(tmp_path, FakeModel(), tiny, every_single())
    assert found.best is None
    assert found.why_none == (
        f"the best candidate within the bounds leaves {LOOPED} of {ANSWERS} answers in a loop, "
        f"the unpatched model {LOOPED}"
    )


def test_where_nothing_loops_nothing_is_tried(tmp_path: Path, tiny: ModelFolder) -> None:
    model = FakeModel(loops=False)
    found = search_in(tmp_path, model, tiny, every_single())
    assert found.why_none == "no answer of the unpatched model ends in a loop, so there is nothing to cure"
    assert (found.best, found.layers, found.attribution, model.swaps) == (None, [], None, ["unpatched"] * 2)


def test_loops_that_the_second_judge_alone_sees_are_cured_too(tmp_path: Path, tiny: ModelFolder) -> None:
    found = search_in(tmp_path, FakeModel(causes=frozenset({CAUSE}), unseen=True), tiny, every_single())
    assert (found.base.looped.value, found.looping) == (0, LOOPED)
    assert units_of(found) == {CAUSE}


@pytest.mark.parametrize("damage", ["dear", "harmful", "deadly"])
def test_a_cure_that_costs_too_much_is_not_taken(tmp_path: Path, tiny: ModelFolder, damage: str) -> None:
    model = FakeModel(causes=frozenset({CAUSE}), **{damage: frozenset({CAUSE})})
    found = search_in(tmp_path, model, tiny, every_single(CAUSE), singles=3)
    assert found.best is None
    assert found.why_none is not None
    assert found.why_none.startswith("the best candidate within the bounds leaves")
    assert any(one.loops.looped == 0 and one.excess(settings_in(tmp_path)) for one in found.measured)


def test_where_all_cost_too_much_that_is_the_reason(tmp_path: Path, tiny: ModelFolder) -> None:
    every = frozenset({CAUSE, SECOND})
    attribution = Attribution([candidate(unit) for unit in sorted(every)])
    found = search_in(tmp_path, FakeModel(causes=every, dear=every), tiny, attribution, gains=[0.0], max_kl=1e-9)
    assert found.why_none == "no candidate that was measured in full stays within the bounds of its side effects"


def test_what_costs_too_much_is_tried_at_lower_doses(tmp_path: Path, tiny: ModelFolder) -> None:
    model = FakeModel(causes=frozenset({CAUSE}), dear=frozenset({CAUSE}))
    found = search_in(tmp_path, model, tiny, Attribution([candidate(CAUSE)]), gains=[0.0])
    doses = [one.candidate for one in found.measured if one.candidate.origin == "dose"]
    assert [one.gains[0][1] for one in doses] == [0.5, 0.75]


def test_what_the_model_cannot_take_is_noted_once_and_the_search_goes_on(tmp_path: Path, tiny: ModelFolder) -> None:
    model = FakeModel(causes=frozenset({CAUSE}), unwelcome=frozenset({OTHER}))
    found = search_in(tmp_path, model, tiny, every_single(OTHER))
    assert units_of(found) == {CAUSE}
    assert f"{candidate(OTHER)}: its format can't hold the edit" in found.refused
    assert len(found.refused) == len(set(found.refused))
    assert not any(OTHER in {target for target, _ in one.candidate.gains} for one in found.measured)


def test_what_was_refused_is_not_swapped_in_again(tmp_path: Path, tiny: ModelFolder) -> None:
    model = FakeModel(causes=frozenset({CAUSE}), unwelcome=frozenset({CAUSE}))
    found = search_in(tmp_path, model, tiny, every_single(CAUSE, SECOND))
    assert found.best is None
    assert len(found.refused) == len(set(found.refused))


@pytest.mark.parametrize("answers", [1, WHOLE, 60, 100, 300, 1000])
def test_a_budget_is_kept_to_one_look_and_always_ends_in_an_edit_or_a_reason(
    tmp_path: Path, tiny: ModelFolder, answers: int
) -> None:
    budget = Budget(answers=answers)
    found = search_in(tmp_path, FakeModel(causes=frozenset({CAUSE})), tiny, every_single(CAUSE), budget)
    assert (found.best is None) == (found.why_none is not None)
    assert budget.spent_answers <= max(WHOLE, answers + WHOLE)
    assert (found.best is not None) == (answers >= 60)


def test_singles_are_looked_at_in_full_before_their_share_is_gone(tmp_path: Path, tiny: ModelFolder) -> None:
    """So many are planned that halving comes to its end."""
    for answers in (300, 900):
        folder, budget = tmp_path / str(answers), Budget(answers=answers)
        found = search_in(folder, FakeModel(), tiny, every_single(), budget, gains=[0.0], sets=0, max_units=1)
        singles = [one for one in found.measured if one.candidate.units == 1]
        assert singles
        assert {one.loops.answers for one in singles} == {ANSWERS}


def test_looks_of_unequal_length_are_not_compared(tmp_path: Path, tiny: ModelFolder) -> None:
    settings, budget = settings_in(tmp_path), Budget()
    evaluator = lab_in(tmp_path / "search", FakeModel(), settings, budget)
    search = Search(evaluator, tiny.anatomy, settings, Stages(budget), lambda *_: every_single())
    a, b, c = (candidate(neuron(0, index)) for index in range(3))
    whole, better, short = measure_of(a, 9, answers=24), measure_of(b, 5, answers=24), measure_of(c, 1, answers=6)
    assert search._ranked([short, whole, better]) == [better, whole, short]


def test_the_parts_of_a_search_are_counted(tmp_path: Path, tiny: ModelFolder) -> None:
    looks = search_in(tmp_path, FakeModel(causes=frozenset({CAUSE})), tiny, every_single()).evaluations
    assert looks["layers"] == LAYERS
    assert looks["singles"] == 24 + 8 + 3
    assert set(looks) >= {"gains", "pairs", "grown"}


def test_only_the_kinds_that_are_wanted_are_silenced(tmp_path: Path, tiny: ModelFolder) -> None:
    found = search_in(tmp_path, FakeModel(), tiny, every_single(), kinds=["experts"], singles=2)
    assert (found.layers, found.kept) == ([], [])


def plain(found: SearchResult) -> Any:
    data = json.loads(json.dumps(found.to_data(), allow_nan=False))
    for part in data["spent"].values():
        del part["seconds"]
    return data


def test_the_same_inputs_give_the_same_search(tmp_path: Path, tiny: ModelFolder) -> None:
    def go(name: str) -> tuple[Any, FakeModel]:
        model = FakeModel(causes=frozenset({CAUSE}))
        return plain(search_in(tmp_path / name, model, tiny, every_single(CAUSE), Budget(answers=300))), model

    (first, one), (second, two) = go("a"), go("b")
    assert first == second
    assert (one.asked, one.swaps) == (two.asked, two.swaps)
    assert first["best"] in {each["candidate"]["id"] for each in first["measured"]}


@pytest.mark.parametrize("stop", [10, 40, 100, 133])
def test_a_search_that_was_killed_comes_to_the_same(tmp_path: Path, tiny: ModelFolder, stop: int) -> None:
    def go(folder: Path, model: FakeModel) -> tuple[Any, Budget]:
        budget = Budget(answers=300)
        return plain(search_in(folder, model, tiny, every_single(CAUSE), budget)), budget

    def model(stop_after: int | None = None) -> FakeModel:
        return FakeModel(causes=frozenset({CAUSE}), stop_after=stop_after)

    whole, killed, rest = model(), model(stop), model()
    wanted, spent = go(tmp_path / "whole", whole)
    with pytest.raises(EngineError, match="killed"):
        go(tmp_path / "parts", killed)
    found, spent_in_parts = go(tmp_path / "parts", rest)
    assert found == wanted
    assert spent_in_parts.spent_answers == spent.spent_answers == len(whole.asked)
    assert sorted(killed.asked + rest.asked) == sorted(whole.asked)


@pytest.mark.parametrize("answers", [60, 100, 300, 1000])
def test_candidates_side_by_side_come_to_the_same_as_one_by_one(
    tmp_path: Path, tiny: ModelFolder, answers: int
) -> None:
    """The same are measured, under the same budget, and the same is found; what is asked together is all that differs."""

    def go(name: str, room: int) -> tuple[Any, FakeModel]:
        model = FakeModel(causes=frozenset({CAUSE, SECOND}), dear=frozenset({OTHER}), room=room)
        attribution = Attribution(
            every_single(OTHER, CAUSE).singles, [candidate(CAUSE, SECOND), candidate(OTHER, CAUSE)]
        )
        found = plain(search_in(tmp_path / name, model, tiny, attribution, Budget(answers=answers)))
        return {key: value for key, value in found.items() if key != "ways"}, model

    (one_by_one, alone), (together, held) = go("alone", 0), go("held", 8)
    assert together == one_by_one
    assert sorted(held.asked) == sorted(alone.asked)
    assert set(held.swaps) == {"unpatched"}
    assert max(map(len, held.batches)) > 1


@pytest.mark.parametrize("stop", [30, 45, 100, 133])
def test_a_search_side_by_side_that_was_killed_comes_to_the_same(tmp_path: Path, tiny: ModelFolder, stop: int) -> None:
    def go(folder: Path, stop_after: int | None = None) -> tuple[Any, FakeModel]:
        model = FakeModel(causes=frozenset({CAUSE}), room=8, stop_after=stop_after)
        return plain(search_in(folder, model, tiny, every_single(CAUSE), Budget(answers=300))), model

    wanted, whole = go(tmp_path / "whole")
    killed = FakeModel(causes=frozenset({CAUSE}), room=8, stop_after=stop)
    with pytest.raises(EngineError, match="killed"):
        search_in(tmp_path / "parts", killed, tiny, every_single(CAUSE), Budget(answers=300))
    found, rest = go(tmp_path / "parts")
    assert found == wanted
    assert sorted(killed.asked + rest.asked) == sorted(whole.asked)


def test_a_search_in_time_decides_after_a_stop_as_it_did_before(
    tmp_path: Path, tiny: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer takes a second before the stop, and none afterwards, since all of them are known."""
    model = FakeModel(causes=frozenset({CAUSE}), room=8)
    monkeypatch.setattr("vllm_surgery.localization.search.evaluator.time.monotonic", lambda: float(len(model.asked)))
    first = search_in(tmp_path, model, tiny, every_single(CAUSE), Budget(seconds=300))
    again = search_in(tmp_path, FakeModel(room=8, stop_after=0), tiny, every_single(CAUSE), Budget(seconds=300))
    assert again == first


@pytest.mark.parametrize(
    ("rules", "seconds"),
    [({}, 1900), ({"unwelcome": ODD}, 1900), ({"weights_only": ODD}, 340)],
    ids=["one was measured before", "one is refused", "one is swapped in"],
)
def test_so_it_does_where_a_batch_took_longer_than_its_part_may(
    tmp_path: Path, tiny: ModelFolder, monkeypatch: pytest.MonkeyPatch, rules: dict[str, Any], seconds: int
) -> None:
    """Answers take longer and longer, so that batches are begun whose end their part has no time for."""

    def go(**more: Any) -> Any:
        model = FakeModel(causes=frozenset({CAUSE, SECOND}), room=8, **rules, **more)
        monkeypatch.setattr(
            "vllm_surgery.localization.search.evaluator.time.monotonic",
            lambda: len(model.asked) * (1 + len(model.asked) / 200),
        )
        sets = [candidate(CAUSE, SECOND), candidate(OTHER, CAUSE)]
        attribution = Attribution(every_single(OTHER, CAUSE).singles, sets)
        return search_in(tmp_path, model, tiny, attribution, Budget(seconds=seconds)).to_data()

    first = go()
    assert go(stop_after=0) == first


def test_a_search_of_an_older_version_that_did_not_write_batches_down_whole_goes_on(
    tmp_path: Path, tiny: ModelFolder
) -> None:
    model = FakeModel(causes=frozenset({CAUSE}), room=8)
    first = search_in(tmp_path, model, tiny, every_single(CAUSE), Budget(answers=300))
    file = tmp_path / "search" / SPENT_FILE
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps({key: one[key] for key in one if key != "group"}) + "\n" for one in lines))
    again = search_in(tmp_path, FakeModel(room=8, stop_after=0), tiny, every_single(CAUSE), Budget(answers=300))
    assert again == first


def test_the_way_of_every_measurement_is_said(tmp_path: Path, tiny: ModelFolder) -> None:
    model = FakeModel(causes=frozenset({CAUSE}), room=8, weights_only=frozenset({OTHER}))
    found = search_in(tmp_path, model, tiny, Attribution([candidate(CAUSE), candidate(OTHER)]), gains=[0.0])
    assert set(found.ways) == {"slot", "swap"}
    assert found.ways["swap"] == len(model.swaps) - model.swaps.count("unpatched") > 0
    assert found.notes == ["no slot can hold some candidates, which were swapped in: no rank has a place for the gains"]


def test_what_was_not_tried_is_counted(tmp_path: Path, tiny: ModelFolder) -> None:
    attribution = Attribution(every_single().singles, [candidate(CAUSE, SECOND)])
    found = search_in(tmp_path, FakeModel(), tiny, attribution, Budget(answers=100), gains=[0.0])
    tried = len({one.candidate.id for one in found.measured})
    assert found.untried["singles"] == 24 - found.evaluations.get("singles", 0)
    assert found.untried["singles"] > 0
    assert tried < 24


def test_what_the_parts_left_of_the_budget_goes_to_what_nobody_tried(tmp_path: Path, tiny: ModelFolder) -> None:
    """Singles may use 45 %, and pairs and growth find little to do where each of them is one answer's."""
    budget = Budget(answers=400)
    found = search_in(tmp_path, FakeModel(), tiny, every_single(), budget, gains=[0.0], beam=1)
    assert found.evaluations["rest"] > 0
    assert found.untried.get("singles", 0) < 24 - found.evaluations["singles"]
    assert budget.spent_answers <= 400


def test_with_room_for_all_nothing_is_left_untried(tmp_path: Path, tiny: ModelFolder) -> None:
    assert search_in(tmp_path, FakeModel(causes=frozenset({CAUSE})), tiny, every_single()).untried == {}


def test_where_the_budget_ends_before_any_candidate_that_is_the_reason(tmp_path: Path, tiny: ModelFolder) -> None:
    found = search_in(tmp_path, FakeModel(causes=frozenset({CAUSE})), tiny, every_single(CAUSE), Budget(answers=1))
    assert found.why_none == (
        "no candidate was tried: the budget was used up before (baseline 0.0 minutes and 16 answers)"
    )
    assert found.untried["singles"] == 24


def test_where_none_was_measured_in_full_that_is_the_reason(
    tmp_path: Path, tiny: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the second candidate answers take far longer, so more is begun than the budget has room for."""
    model = FakeModel(causes=frozenset({CAUSE}))
    quick = WHOLE + LAYERS * 3 + 2 * 6

    def clock() -> float:
        return len(model.asked) + 1000.0 * max(0, len(model.asked) - quick)

    monkeypatch.setattr("vllm_surgery.localization.search.evaluator.time.monotonic", clock)
    found = search_in(tmp_path, model, tiny, every_single(CAUSE), Budget(seconds=300))
    assert found.measured == []
    assert found.why_none is not None
    assert re.fullmatch(
        r"of \d+ candidates that were tried none was measured in full before the budget was used up", found.why_none
    )


def test_where_the_ranking_names_nothing_that_is_the_reason(tmp_path: Path, tiny: ModelFolder) -> None:
    attribution = Attribution([], [], ["no loop is long enough to look into"])
    found = search_in(tmp_path, FakeModel(), tiny, attribution)
    assert found.why_none == "no unit was found that is worth a try: no loop is long enough to look into"


def test_where_the_model_takes_none_that_is_the_reason(tmp_path: Path, tiny: ModelFolder) -> None:
    model = FakeModel(unwelcome=frozenset({CAUSE}))
    found = search_in(tmp_path, model, tiny, Attribution([candidate(CAUSE)]))
    assert (
        found.why_none
        == f"the model can't take any of the candidates: {candidate(CAUSE)}: its format can't hold the edit"
    )


def test_rankings_count_and_get_their_share_of_the_time(tmp_path: Path, tiny: ModelFolder) -> None:
    allowed: list[float] = []

    def attribute(records: object, matter: object, seconds: float) -> Attribution:
        allowed.append(seconds)
        return replace(every_single(CAUSE), seconds=5000.0)

    settings, budget = settings_in(tmp_path), Budget(seconds=4000)
    evaluator = lab_in(tmp_path / "search", FakeModel(causes=frozenset({CAUSE})), settings, budget)
    found = Search(evaluator, tiny.anatomy, settings, Stages(budget), attribute).run()
    assert allowed[0] == pytest.approx(SHARES[UNITS] * 4000, rel=0.1)
    assert budget.spent_seconds >= 5000
    assert found.spent["units"][0] == 5000
    assert found.why_none is not None
    assert found.why_none.startswith("no candidate was tried: the budget was used up before (")
    assert "units 83.3 minutes" in found.why_none


def test_seeds_that_the_baseline_had_no_budget_for_are_said(tmp_path: Path, tiny: ModelFolder) -> None:
    model = FakeModel(causes=frozenset({CAUSE}))
    found = search_in(tmp_path, model, tiny, every_single(CAUSE), Budget(answers=200), seeds=9)
    assert found.base.answers == 12 + 3 * 12
    assert found.notes[0].startswith("72 sampled answers to each candidate were left out")
    assert {seed for arm, cell, _, seed in model.asked if cell == "sampled"} == {0, 1, 2}
