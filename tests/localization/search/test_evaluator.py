# SPDX-License-Identifier: Apache-2.0
"""Nothing is asked twice, and what goes on after a kill decides by the very same figures."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.localization.fake import BATCH, PROBES, FakeModel, candidate, lab_in, neuron, settings_in
from vllm_surgery.errors import EngineError, MismatchError
from vllm_surgery.evaluation.analysis.outcomes import loops
from vllm_surgery.localization.search.budget import Budget
from vllm_surgery.localization.search.evaluator import SPENT_FILE, CandidateEvaluator, Fidelity

if TYPE_CHECKING:
    from pathlib import Path

    from vllm_surgery.localization.search.measurements import Measurement

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
    assert model.swaps == ["unpatched", CURE.id, CURE.id, CURE.id]


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
    spent = [0, JOBS + TASKS, 6, 6, 6, JOBS - 12 + TASKS]
    assert [used * ROOM for _, used in passed] == pytest.approx([sum(spent[: n + 2]) for n in range(5)])
    lines = (tmp_path / "search" / SPENT_FILE).read_text().splitlines()
    assert [json.loads(line)["answers"] for line in lines] == spent[1:]


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


def test_answers_before_a_kill_are_charged_when_the_measurement_ends(tmp_path: Path) -> None:
    killed, budget = looping(), Budget(seconds=3600, answers=ROOM)
    killed.stop_after = 3 * BATCH
    with pytest.raises(EngineError):
        lab_of(tmp_path, killed).baseline()
    lab_of(tmp_path, looping(), budget).baseline()
    assert budget.spent_answers == JOBS + TASKS
    (line,) = map(json.loads, (tmp_path / "search" / SPENT_FILE).read_text().splitlines())
    assert line["answers"] == JOBS + TASKS


def test_the_time_before_a_kill_is_charged_at_the_pace_of_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four of 28 answers are left, and they take 4 seconds."""
    killed, budget = looping(), Budget(seconds=3600)
    killed.stop_after = 3 * BATCH
    with pytest.raises(EngineError):
        lab_of(tmp_path, killed).baseline()
    clock = iter([100.0, 104.0])
    monkeypatch.setattr("vllm_surgery.localization.search.evaluator.time.monotonic", lambda: next(clock))
    lab_of(tmp_path, looping(), budget).baseline()
    assert budget.spent_seconds == pytest.approx(28.0)


def test_a_kill_after_all_answers_leaves_texts_to_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(prompt: str, reply: str) -> None:
        raise EngineError("killed")

    killed, rest, budget = looping(), looping(), Budget(answers=ROOM)
    monkeypatch.setattr(killed, "logprobs", die)
    with pytest.raises(EngineError):
        lab_of(tmp_path, killed).baseline()
    lab_of(tmp_path, rest, budget).baseline()
    assert (rest.asked, len(rest.compared), budget.spent_answers) == ([], TEXTS, JOBS + TASKS)


def test_a_candidate_that_the_model_cannot_take_is_refused_each_time_and_charged_for_nothing(tmp_path: Path) -> None:
    budget = Budget(answers=ROOM)
    evaluator = lab_of(tmp_path, FakeModel(unwelcome=frozenset({OTHER})), budget)
    evaluator.baseline()
    for _ in range(2):
        with pytest.raises(MismatchError, match="format can't hold the edit"):
            evaluator.measure(NOTHING, Fidelity(6, 1))
    assert budget.spent_answers == JOBS + TASKS


def test_each_measurement_is_reported(tmp_path: Path) -> None:
    told: list[str] = []
    evaluator = lab_of(tmp_path, looping())
    evaluator._context = evaluator._context.__class__(**{**vars(evaluator._context), "report": told.append})
    evaluator.baseline()
    evaluator.measure(CURE, Fidelity(6, 1))
    assert told == ["neurons/1/5 x 0"]
