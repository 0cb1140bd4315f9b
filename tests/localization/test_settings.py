# SPDX-License-Identifier: Apache-2.0
"""What a search asks by default, and what its settings can't be."""

from __future__ import annotations

import json
import math

import pytest
from pydantic import ValidationError

from vllm_surgery.evaluation.arms import unpatched
from vllm_surgery.evaluation.protocol import load_protocol
from vllm_surgery.evaluation.trial import Trial
from vllm_surgery.localization.settings import GREEDY, SAMPLED, SIDE, SearchSettings


def test_the_search_and_the_trial_share_no_probe_that_may_loop() -> None:
    settings = SearchSettings()
    protocols = (settings.search_protocol(), settings.held_out_protocol())
    trials = [Trial.of(one, [unpatched()], {}) for one in protocols]
    first, second = (
        {job.prompt for job in trial.jobs(unpatched()) if trial.sets[job.key.set].use == "loops"} for trial in trials
    )
    assert first
    assert second
    assert not first & second


def test_the_search_asks_nothing_everyday() -> None:
    protocol = SearchSettings().search_protocol()
    assert [(cell.name, cell.sets) for cell in protocol.cells] == [
        (GREEDY, ["lists:search"]),
        (SAMPLED, ["lists:search"]),
        (SIDE, ["short", "skills"]),
    ]
    assert SearchSettings().held_out_protocol().cells[0].sets == ["paper", "lists:held-out", "healthy"]


def test_the_trial_asks_other_tasks_and_compares_other_replies_than_the_search() -> None:
    settings = SearchSettings()
    search, trial = (
        Trial.of(protocol, [unpatched()], {}) for protocol in (settings.search_protocol(), settings.held_out_protocol())
    )
    for use in ("short", "skills", "text"):
        looked_at, judged_by = (
            {probe.prompt for one in asked.sets.values() if one.use == use for probe in one.probes}
            for asked in (search, trial)
        )
        assert looked_at
        assert judged_by
        assert not looked_at & judged_by


def test_a_protocol_asks_what_the_trial_judges_costs_by() -> None:
    protocol, settings = load_protocol("held-out-tasks"), SearchSettings()
    (cell,) = protocol.cells
    assert (cell.sets, cell.temperature, cell.max_tokens) == (settings.held_out_tasks, 0, settings.task_tokens)
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
