# SPDX-License-Identifier: Apache-2.0
"""Nothing is asked twice, and what goes on after a kill decides by the very same figures."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.evaluation.fake_server import LOOP, SOUND
from tests.localization.fake import BATCH, PROBES, FakeModel, candidate, lab_in, neuron, settings_in
from vllm_surgery.errors import EngineError, MismatchError
from vllm_surgery.evaluation.analysis.outcomes import loops
from vllm_surgery.localization.search.budget import Asked, Budget
from vllm_surgery.localization.search.evaluator import CandidateEvaluator, Fidelity
from vllm_surgery.localization.search.measurements import Measurement
from vllm_surgery.localization.search.spending import SPENT_FILE
from vllm_surgery.localization.settings import GREEDY

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("no_waiting_for_disks")

CAUSE, OTHER = neuron(1, 5), neuron(0, 3)
CURE, NOTHING = candidate(CAUSE), candidate(OTHER)
JOBS, TASKS, TEXTS = 2 * PROBES, 4, 2
EVERYTHING = Fidelity(JOBS, TEXTS, tasks=True)
ROOM = 200


def looping() -> FakeModel:
    return FakeModel(causes=frozenset({CAUSE}))


def lab_of(folder: Path, model: FakeModel, budget: Budget | None = None, **changes: object) -> CandidateEvaluator:
    return lab_in(folder / "search", model, settings_in(folder, **changes), budget)


def walk(evaluator: CandidateEvaluator, budget: Budget) -> list[tuple[Measurement | None, float]]:
    """What a search might look at; after each look, what was measured and the share of the budget that is gone."""
    evaluator.baseline()
    passed: list[tuple[Measurement | None, float]] = [(None, budget.used)]
    for one, look in ((CURE, Fidelity(6, 1)), (NOTHING, Fidelity(6, 1)), (CURE, Fidelity(12, 1)), (CURE, EVERYTHING)):
        passed.append((evaluator.measure(one, look), budget.used))
    return passed


def test_everything_is_all_probes_under_all_seeds_all_texts_and_all_tasks(tmp_path: Path) -> None:
    assert lab_of(tmp_path, looping()).full_fidelity == EVERYTHING


def test_the_baseline_is_asked_everything_once(tmp_path: Path) -> None:
    model = looping()
    evaluator = lab_of(tmp_path, model)
    records = evaluator.baseline()
    assert len(model.asked) == len(set(model.asked)) == JOBS + TASKS
    assert len(model.compared) == TEXTS
    assert [record.prompt for record in records] == [job.prompt for job in evaluator.jobs]
    assert sum(map(loops, records)) == JOBS * 2 / 3


def test_two_that_loop_come_before_one_that_does_not_and_greedy_before_sampled(tmp_path: Path) -> None:
    evaluator = lab_of(tmp_path, looping())
    looped = [loops(record) for record in evaluator.baseline()]
    assert looped[:PROBES] == [True, True, False] * (PROBES // 3)
    assert [job.key.cell for job in evaluator.jobs] == ["greedy"] * PROBES + ["sampled"] * PROBES


def test_the_seed_decides_the_order(tmp_path: Path) -> None:
    def order(name: str, seed: int) -> list[str]:
        evaluator = lab_of(tmp_path / name, looping(), seed=seed)
        return [record.prompt for record in evaluator.baseline()]

    assert order("a", 1) == order("b", 1) != order("c", 2)


def test_a_look_asks_the_first_answers_alone(tmp_path: Path) -> None:
    model = looping()
    evaluator = lab_of(tmp_path, model)
    evaluator.baseline()
    before = len(model.asked)
    found = evaluator.measure(CURE, Fidelity(6, 1))
    assert [asked[2] for asked in model.asked[before:]] == [job.prompt for job in evaluator.jobs[:6]]
    assert (found.loops.answers, found.loops.base, found.loops.looped, found.loops.rescued) == (6, 4, 0, 4)
    assert found.cost is not None
    assert found.cost.lost is None
    assert len(model.compared) == TEXTS + 1


def test_a_longer_look_asks_only_what_is_missing(tmp_path: Path) -> None:
    model = looping()
    evaluator = lab_of(tmp_path, model)
    evaluator.baseline()
    for look in (Fidelity(6, 1), Fidelity(12, 1), Fidelity(6, 1), EVERYTHING, EVERYTHING):
        evaluator.measure(CURE, look)
    assert len(model.asked) == len(set(model.asked)) == 2 * (JOBS + TASKS)
    assert len(model.compared) == len(set(model.compared)) == 2 * TEXTS
    assert model.swaps == ["unpatched", "unpatched", CURE.id, CURE.id, CURE.id]


def test_tasks_are_asked_in_the_closest_look_alone(tmp_path: Path) -> None:
    model = FakeModel(causes=frozenset({CAUSE}), harmful=frozenset({CAUSE}))
    evaluator = lab_of(tmp_path, model)
    evaluator.baseline()
    evaluator.measure(CURE, Fidelity(JOBS, TEXTS))
    assert not any(asked[2].startswith("Skill") for asked in model.asked if asked[0] == CURE.id)
    cost = evaluator.measure(CURE, EVERYTHING).cost
    assert cost is not None
    assert (cost.lost, cost.won) == (TASKS, 0)


def test_what_moves_probabilities_costs(tmp_path: Path) -> None:
    evaluator = lab_of(tmp_path, FakeModel(causes=frozenset({CAUSE}), dear=frozenset({OTHER})))
    evaluator.baseline()
    cheap, dear = (evaluator.measure(one, Fidelity(6, 1)).kl or 0.0 for one in (CURE, NOTHING))
    assert 0 < cheap < 0.001
    assert dear > 0.1


def test_without_texts_nothing_is_known_of_cost(tmp_path: Path) -> None:
    model = looping()
    evaluator = lab_of(tmp_path, model, text=[])
    evaluator.baseline()
    assert evaluator.measure(CURE, evaluator.full_fidelity).cost is None
    assert model.compared == []


def test_every_look_is_charged_once(tmp_path: Path) -> None:
    budget = Budget(answers=ROOM)
    passed = walk(lab_of(tmp_path, looping(), budget), budget)
    spent = [PROBES + TASKS, PROBES, 6, 6, 6, JOBS - 12 + TASKS]
    weighed = [one - (TASKS if n in {0, 5} else 0) * (1 - budget.task_weight) for n, one in enumerate(spent)]
    assert [used * ROOM for _, used in passed] == pytest.approx([sum(weighed[: n + 2]) for n in range(5)])
    lines = [json.loads(line) for line in (tmp_path / "search" / SPENT_FILE).read_text().splitlines()]
    assert [line["answers"] for line in lines] == spent
    assert [line["tasks"] for line in lines] == [TASKS, 0, 0, 0, 0, TASKS]


def test_an_answer_to_a_task_counts_by_how_long_the_unpatched_models_are(tmp_path: Path) -> None:
    """Two of three lists loop."""
    budget = Budget(answers=ROOM)
    evaluator = lab_of(tmp_path, looping(), budget)
    records = [record for record in evaluator.baseline() if record.key.cell == GREEDY]
    assert {len(record.token_ids) for record in records} == {len(LOOP), len(SOUND)}
    lists = sum(len(record.token_ids) for record in records) / PROBES
    assert budget.task_weight == pytest.approx(len(SOUND) / lists)
    assert budget.used * ROOM == pytest.approx(JOBS + TASKS * len(SOUND) / lists)


def test_what_is_known_is_charged_as_it_was_and_nothing_is_asked(tmp_path: Path) -> None:
    once, again = Budget(seconds=3600, answers=ROOM), Budget(seconds=3600, answers=ROOM)
    first = walk(lab_of(tmp_path, looping(), once), once)
    idle = FakeModel(stop_after=0)
    assert walk(lab_of(tmp_path, idle, again), again) == first
    assert (idle.asked, idle.compared, idle.swaps) == ([], [], [])
    assert again == once


@pytest.mark.parametrize("stop", range(0, 60, BATCH))
def test_a_walk_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path: Path, stop: int) -> None:
    whole, parts = Budget(answers=ROOM), Budget(answers=ROOM)
    model, killed, rest = looping(), looping(), looping()
    wanted = walk(lab_of(tmp_path / "whole", model, whole), whole)
    killed.stop_after = stop
    with pytest.raises(EngineError, match="killed"):
        walk(lab_of(tmp_path / "parts", killed), Budget())
    assert walk(lab_of(tmp_path / "parts", rest, parts), parts) == wanted
    assert sorted(killed.asked + rest.asked) == sorted(model.asked)
    assert sorted(killed.compared + rest.compared) == sorted(model.compared)


def test_a_search_of_an_older_version_that_goes_on_owes_nothing_less_than_nothing(tmp_path: Path) -> None:
    """It didn't write down which answers were to tasks."""
    lab_of(tmp_path, looping(), seeds=0).baseline()
    file = tmp_path / "search" / SPENT_FILE
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps({key: one[key] for key in one if key != "tasks"}) + "\n" for one in lines))
    budget = Budget(answers=ROOM)
    evaluator = lab_of(tmp_path, FakeModel(stop_after=0), budget, seeds=0)
    assert evaluator.spending.owed("none") == Asked(0, TASKS)
    evaluator.baseline()
    assert budget.spent == Asked(PROBES + TASKS)


def test_answers_before_a_kill_are_charged_when_the_measurement_ends(tmp_path: Path) -> None:
    killed, budget = looping(), Budget(seconds=3600, answers=ROOM)
    killed.stop_after = 3 * BATCH
    with pytest.raises(EngineError):
        lab_of(tmp_path, killed).baseline()
    lab_of(tmp_path, looping(), budget).baseline()
    assert budget.spent_answers == JOBS + TASKS
    lines = map(json.loads, (tmp_path / "search" / SPENT_FILE).read_text().splitlines())
    assert [line["answers"] for line in lines] == [PROBES + TASKS, PROBES]


def test_the_time_before_a_kill_is_charged_at_the_pace_of_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight of 16 greedy answers are left, and they take 8 seconds."""
    killed, budget = looping(), Budget(seconds=3600)
    killed.stop_after = BATCH
    with pytest.raises(EngineError):
        lab_of(tmp_path, killed, seeds=0).baseline()
    model = looping()
    monkeypatch.setattr("vllm_surgery.localization.search.evaluator.time.monotonic", lambda: 100.0 + len(model.asked))
    lab_of(tmp_path, model, budget, seeds=0).baseline()
    assert budget.spent_seconds == pytest.approx(16.0)


def test_a_kill_after_all_answers_leaves_texts_to_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(texts: object) -> None:
        raise EngineError("killed")

    killed, rest, budget = looping(), looping(), Budget(answers=ROOM)
    monkeypatch.setattr(killed, "logprobs", die)
    with pytest.raises(EngineError):
        lab_of(tmp_path, killed, seeds=0).baseline()
    lab_of(tmp_path, rest, budget, seeds=0).baseline()
    assert (rest.asked, len(rest.compared), budget.spent_answers) == ([], TEXTS, PROBES + TASKS)


def test_a_candidate_that_the_model_cannot_take_is_refused_each_time_and_charged_for_nothing(tmp_path: Path) -> None:
    budget = Budget(answers=ROOM)
    evaluator = lab_of(tmp_path, FakeModel(unwelcome=frozenset({OTHER})), budget)
    evaluator.baseline()
    for _ in range(2):
        with pytest.raises(MismatchError, match="format can't hold the edit"):
            evaluator.measure(NOTHING, Fidelity(6, 1))
    assert budget.spent_answers == JOBS + TASKS


@pytest.mark.parametrize("room", [0, 4])
def test_it_is_told_how_far_a_measurement_has_come(tmp_path: Path, room: int) -> None:
    told: list[tuple[str, float]] = []
    model = looping()
    model.room = room
    evaluator = lab_of(tmp_path, model)
    evaluator._context = replace(evaluator._context, report=lambda what, done=0.0: told.append((what, done)))
    evaluator.baseline()
    assert sum(done for _, done in told) == pytest.approx(1)
    assert told[0] == (f"baseline, {BATCH} of {JOBS + TASKS} answers", BATCH / (JOBS + TASKS))
    evaluator.measure(CURE, Fidelity(6, 1))
    assert told[-1] == (f"{'1 candidates' if room else CURE}, 6 of 6 answers", 1.0)


def test_what_is_under_way_moves_the_budgets_place_and_is_counted_once(tmp_path: Path) -> None:
    budget = Budget(answers=ROOM)
    evaluator = lab_of(tmp_path, looping(), budget)
    places: list[float] = []
    evaluator._context = replace(evaluator._context, report=lambda *_: places.append(budget.used_so_far * ROOM))
    evaluator.baseline()
    tasks = TASKS * budget.task_weight
    assert places == pytest.approx([8, 16, 20 + tasks, 24 + tasks])
    assert budget.used * ROOM == pytest.approx(24 + tasks)


def test_the_baseline_takes_no_further_seed_once_its_share_is_used_up(tmp_path: Path) -> None:
    budget = Budget(answers=100)
    model = looping()
    evaluator = lab_of(tmp_path, model, budget, seeds=3)
    records = evaluator.baseline(0.25)
    assert budget.spent_answers == len(model.asked) == PROBES + TASKS + PROBES
    assert evaluator.left_out == 2 * PROBES
    assert len(records) == len(evaluator.jobs) == evaluator.full_fidelity.answers == 2 * PROBES
    idle, again = FakeModel(stop_after=0), Budget(answers=100)
    gone_on = lab_of(tmp_path, idle, again, seeds=3)
    assert gone_on.baseline(0.25) == records
    assert again.spent_answers == budget.spent_answers


def in_slots(room: int = 4, **rules: Any) -> FakeModel:
    return FakeModel(causes=frozenset({CAUSE}), room=room, **rules)


MANY = [CURE, NOTHING, candidate(neuron(0, 1)), candidate(neuron(2, 2))]


@pytest.mark.parametrize("look", [Fidelity(6, 1), EVERYTHING])
def test_side_by_side_measurements_are_those_of_each_alone(tmp_path: Path, look: Fidelity) -> None:
    one_by_one, together = lab_of(tmp_path / "a", looping()), lab_of(tmp_path / "b", model := in_slots())
    one_by_one.baseline()
    together.baseline()
    assert together.measure_all(MANY, look) == [one_by_one.measure(one, look) for one in MANY]
    assert model.batches == [[one.id for one in MANY]]
    assert model.swaps == ["unpatched"] * 2


def test_answers_to_one_prompt_are_made_side_by_side(tmp_path: Path) -> None:
    evaluator = lab_of(tmp_path, model := in_slots())
    evaluator.baseline()
    before = len(model.asked)
    evaluator.measure_all(MANY, Fidelity(6, 1))
    asked = model.asked[before:]
    assert [arm for arm, *_ in asked] == [one.id for one in MANY] * 6
    assert len({prompt for _, _, prompt, _ in asked[:4]}) == 1


def test_of_candidates_side_by_side_only_what_is_missing_is_asked(tmp_path: Path) -> None:
    evaluator = lab_of(tmp_path, model := in_slots())
    evaluator.baseline()
    evaluator.measure_all(MANY[:2], Fidelity(6, 1))
    evaluator.measure_all(MANY, Fidelity(12, 1))
    evaluator.measure_all(MANY, Fidelity(6, 1))
    assert len(model.asked) == len(set(model.asked)) == JOBS + TASKS + 4 * 12
    assert len(model.batches) == 3


def test_one_that_no_slot_can_hold_is_swapped_in_and_the_reason_kept(tmp_path: Path) -> None:
    model = in_slots(weights_only=frozenset({OTHER}))
    evaluator, alone = lab_of(tmp_path / "a", model), lab_of(tmp_path / "b", looping())
    alone.baseline()
    evaluator.baseline()
    found = evaluator.measure_all(MANY, Fidelity(6, 1))
    assert found == [alone.measure(one, Fidelity(6, 1)) for one in MANY]
    assert model.swaps[2:] == [NOTHING.id]
    assert evaluator.spending.ways == {"slot": 3, "swap": 1}
    again = lab_of(tmp_path / "a", FakeModel(stop_after=0))
    assert again.spending.why_swapped == ["no rank has a place for the gains"]


def test_one_that_the_model_cannot_take_is_refused_and_the_others_are_measured(tmp_path: Path) -> None:
    budget = Budget(answers=ROOM)
    evaluator = lab_of(tmp_path, in_slots(unwelcome=frozenset({OTHER})), budget)
    evaluator.baseline()
    cure, refusal, *rest = evaluator.measure_all(MANY, Fidelity(6, 1))
    assert isinstance(refusal, MismatchError)
    assert all(isinstance(one, Measurement) for one in (cure, *rest))
    assert budget.spent_answers == JOBS + TASKS + 3 * 6


def test_a_batch_is_written_down_whole_with_those_that_were_known_or_refused(tmp_path: Path) -> None:
    evaluator = lab_of(tmp_path, in_slots(unwelcome=frozenset({OTHER})))
    evaluator.baseline()
    evaluator.measure(CURE, Fidelity(6, 1))
    evaluator.measure_all(MANY, Fidelity(6, 1))
    lines = [json.loads(line) for line in (tmp_path / "search" / SPENT_FILE).read_text().splitlines()]
    assert [line["group"] for line in lines] == [[], [], [CURE.id], *[[one.id for one in MANY]] * 2]


@pytest.mark.parametrize("stop", [8, 16])
def test_a_batch_that_was_killed_goes_on_and_each_candidate_is_charged_once(tmp_path: Path, stop: int) -> None:
    whole, parts = Budget(answers=ROOM), Budget(answers=ROOM)
    first = lab_of(tmp_path / "whole", in_slots(), whole)
    first.baseline()
    wanted = first.measure_all(MANY, Fidelity(6, 1))
    killed, rest = in_slots(stop_after=JOBS + TASKS + stop), in_slots()
    evaluator = lab_of(tmp_path / "parts", killed)
    evaluator.baseline()
    with pytest.raises(EngineError, match="killed"):
        evaluator.measure_all(MANY, Fidelity(6, 1))
    again = lab_of(tmp_path / "parts", rest, parts)
    again.baseline()
    assert [again.answers_missing(one, Fidelity(6, 1)) for one in MANY] == [Asked(6)] * 4
    assert again.measure_all(MANY, Fidelity(6, 1)) == wanted
    assert parts.spent_answers == whole.spent_answers == len(killed.asked) + len(rest.asked)


def test_the_time_of_a_batch_is_shared_by_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, budget = in_slots(), Budget(seconds=3600)
    monkeypatch.setattr("vllm_surgery.localization.search.evaluator.time.monotonic", lambda: float(len(model.asked)))
    evaluator = lab_of(tmp_path, model, budget)
    evaluator.baseline()
    evaluator.measure(CURE, Fidelity(6, 1))
    evaluator.measure_all(MANY, Fidelity(12, 1))
    lines = [json.loads(line) for line in (tmp_path / "search" / SPENT_FILE).read_text().splitlines()]
    assert [line["seconds"] for line in lines] == pytest.approx([16, 12, 6, 6, 12, 12, 12])
    assert [line["batch"] for line in lines] == [1, 2, 3, 4, 4, 4, 4]
    assert budget.spent_seconds == pytest.approx(len(model.asked))
