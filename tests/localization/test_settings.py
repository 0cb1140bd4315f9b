# SPDX-License-Identifier: Apache-2.0
"""What a search asks by default, and what its settings can't be."""

from __future__ import annotations

import json
import math

import pytest
from pydantic import ValidationError

from vllm_surgery.evaluation.arms import unpatched
from vllm_surgery.evaluation.probes import load_probes
from vllm_surgery.evaluation.protocol import load_protocol
from vllm_surgery.evaluation.trial import Trial
from vllm_surgery.localization.settings import GREEDY, SAMPLED, SIDE, SearchSettings


def test_search_choice_and_trial_share_no_subject() -> None:
    settings = SearchSettings()
    protocols = (settings.search_protocol(), settings.for_choice().search_protocol(), settings.held_out_protocol())
    trials = [Trial.of(one, [unpatched()], {}) for one in protocols]
    subjects = [
        {probe.subject for one in trial.sets.values() if one.use == "loops" for probe in one.probes} for trial in trials
    ]
    assert [len(found) for found in subjects] == [48, 48, 48]
    assert len(set().union(*subjects)) == 3 * 48


def test_the_search_asks_nothing_everyday() -> None:
    protocol = SearchSettings().search_protocol()
    assert [(cell.name, cell.sets) for cell in protocol.cells] == [
        (GREEDY, ["wide-lists:search"]),
        (SAMPLED, ["wide-lists:search"]),
        (SIDE, ["wide-tasks:search"]),
    ]
    assert SearchSettings().held_out_protocol().cells[0].sets == ["wide-lists:held-out", "healthy"]


def test_the_search_asks_no_more_prompts_than_it_is_told_to_and_the_choice_all() -> None:
    settings = SearchSettings(first=24, seeds=1, choice_tokens=400)
    of_search = Trial.of(settings.search_protocol(), [unpatched()], {}).jobs(unpatched())
    of_choice = Trial.of(settings.for_choice().search_protocol(), [unpatched()], {}).jobs(unpatched())
    assert sum(job.key.cell != SIDE for job in of_search) == 2 * 24
    assert {job.sampling["max_tokens"] for job in of_choice if job.key.cell != SIDE} == {400}
    assert sum(job.key.cell == GREEDY for job in of_choice) == 80


def test_choice_and_trial_are_cut_by_themselves() -> None:
    settings = SearchSettings(first=24, choice_first=16, held_out_first=64, held_out_seeds=1)
    of_choice, of_trial = (
        Trial.of(protocol, [unpatched()], {}).jobs(unpatched())
        for protocol in (settings.for_choice().search_protocol(), settings.held_out_protocol())
    )
    assert sum(job.key.cell == GREEDY for job in of_choice) == 16
    assert sum(job.key.set == "wide-lists:held-out" for job in of_trial) == 2 * 64
    whole = SearchSettings().search_protocol().cells[-1]
    assert settings.for_choice().search_protocol().cells[-1].first == whole.first is None


def test_prompts_of_a_model_that_completes_are_texts_to_go_on_with() -> None:
    protocol = SearchSettings(form="completion").search_protocol()
    job = Trial.of(protocol, [unpatched()], {}).jobs(unpatched())[0]
    assert job.prompt == load_probes("wide-lists:search").probes[0].completion


def test_the_trial_asks_other_tasks_and_compares_other_replies_than_the_search() -> None:
    settings = SearchSettings()
    search, trial = (
        Trial.of(protocol, [unpatched()], {}) for protocol in (settings.search_protocol(), settings.held_out_protocol())
    )
    for use in ("skills", "text"):
        looked_at, judged_by = (
            {probe.prompt for one in asked.sets.values() if one.use == use for probe in one.probes}
            for asked in (search, trial)
        )
        assert looked_at
        assert judged_by
        assert not looked_at & judged_by


def test_a_protocol_asks_what_the_trial_judges_costs_by() -> None:
    protocol, settings = load_protocol("wide"), SearchSettings()
    cell = protocol.cell("side")
    asked = [name for name in cell.sets if name not in settings.ordinary]
    assert (asked, cell.temperature, cell.max_tokens) == (settings.held_out_tasks, 0, settings.task_tokens)
    assert protocol.text == settings.held_out_text


def test_without_seeds_answers_are_greedy_and_without_tasks_none_are_asked() -> None:
    cells = SearchSettings(seeds=0, tasks=[]).search_protocol().cells
    assert [cell.name for cell in cells] == [GREEDY]


def test_settings_come_back_from_json() -> None:
    settings = SearchSettings(gains=[0.0, -2.5], max_kl=1e-7)
    assert SearchSettings(**json.loads(json.dumps(settings.model_dump()))) == settings


@pytest.mark.parametrize("gain", [1.0, 1.0 + 1e-9, math.nan, math.inf, -math.inf, 1e-50, 1e39])
def test_a_gain_that_no_patch_can_hold(gain: float) -> None:
    with pytest.raises(ValidationError, match="gains"):
        SearchSettings(gains=[0.0, gain])


@pytest.mark.parametrize(
    "changes", [{"gains": []}, {"kinds": []}, {"max_kl": math.inf}, {"max_perplexity": math.nan}, {"sets_": 1}]
)
def test_what_settings_cannot_be(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(changes))):
        SearchSettings(**changes)
