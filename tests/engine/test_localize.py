# SPDX-License-Identifier: Apache-2.0
"""A whole search on real engines finds what was planted in a model, and nothing where nothing was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.localizing import Task, run_searches
from tests.localization.planted import CURES, MAX_TOKENS, MODELS, Planted
from vllm_surgery import load_patch
from vllm_surgery.evaluation import TrialFolder

if TYPE_CHECKING:
    from tests.localization.circuits import Unit

pytestmark = pytest.mark.engine

PLANTED = ("dense_loop", "dense_pair_loop", "expert_pair_loop")
SLOTS = {"additional_config": {"vllm_surgery": {"slots": 4}}}
"""Of the engines with something to find. The others swap."""
SEARCHED = (*PLANTED, "no_circuit", "healthy")
BUDGET = "900g"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Planted]:
    work = tmp_path_factory.mktemp("planted")
    return {name: MODELS[name](work / name) for name in SEARCHED}


@pytest.fixture(scope="module")
def found(models: dict[str, Planted], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    work = tmp_path_factory.mktemp("searches")
    tasks = {
        name: Task(str(one.folder), str(work / name), settings_of(one), BUDGET, SLOTS if name in PLANTED else {})
        for name, one in models.items()
    }
    tasks["swapped"] = replace(tasks["dense_loop"], out=str(work / "swapped"), options={})
    return dict(zip(tasks, run_searches(*tasks.values()), strict=True))


def settings_of(planted: Planted) -> dict[str, Any]:
    """Each kind of unit by itself; greedy answers, since sampled ones of these models are the same."""
    probes = {use: str(file) for use, file in planted.probes.items()}
    return {
        "kinds": [planted.kind],
        "search": [f"{probes['loops']}:search"],
        "choice": [],
        "held_out": [f"{probes['loops']}:held-out"],
        "ordinary": [probes["healthy"]],
        "text": [probes["text"]],
        "tasks": [probes["short"], probes["skills"]],
        "held_out_text": [probes["text"]],
        "held_out_tasks": [probes["short"], probes["skills"]],
        "seeds": 0,
        "held_out_seeds": 1,
        "max_tokens": MAX_TOKENS,
        "task_tokens": MAX_TOKENS,
        "gains": [0.0, -1.0, 3.0],
        "singles": 12,
        "sets": 3,
        "beam": 3,
    }


@pytest.mark.parametrize("name", PLANTED)
def test_the_planted_units_are_found_and_no_others(
    models: dict[str, Planted], found: dict[str, dict[str, Any]], name: str
) -> None:
    units: list[Unit] = [(layer, index) for layer, index in found[name]["units"]]
    assert units == sorted(models[name].units)
    assert all(gain == "mask" or gain in CURES or len(units) == 1 for gain in found[name]["gains"])


@pytest.mark.parametrize("name", PLANTED)
def test_what_was_found_holds_up_and_is_written_down_sealed(found: dict[str, dict[str, Any]], name: str) -> None:
    patch = load_patch(found[name]["patch"])
    assert len(patch.seal) == len(found[name]["units"])
    assert patch.provenance["evidence"]["verdict"] == "fewer loops"
    folder = Path(found[name]["patch"]).parent
    assert "The patch was written." in (folder / "report.md").read_text()


@pytest.mark.parametrize("name", SEARCHED)
def test_candidates_share_batches_where_there_are_slots(found: dict[str, dict[str, Any]], name: str) -> None:
    assert set(found[name]["ways"]) <= {"slot" if name in PLANTED else "swap"}


def test_candidates_in_one_batch_are_answered_as_those_that_are_swapped_in_one_by_one(
    found: dict[str, dict[str, Any]],
) -> None:
    """The same candidates, the same greedy answers to every probe, and the same edit."""
    held, swapped = found["dense_loop"], found["swapped"]
    for part in ("units", "gains", "looks", "answers", "kept", "first"):
        assert held[part] == swapped[part], part
    assert greedy_answers(held) == greedy_answers(swapped)
    assert (held["ways"], swapped["ways"]) == (
        {"slot": sum(swapped["ways"].values())},
        {"swap": sum(held["ways"].values())},
    )


def greedy_answers(outcome: dict[str, Any]) -> dict[tuple[str, ...], list[int]]:
    """Of every candidate, and of all arms of the held-out trial."""
    folder = Path(outcome["patch"]).parent
    records = [record for part in ("search", "held-out") for record in TrialFolder(folder / part).records()]
    return {tuple(record.key[:4]): record.token_ids for record in records if record.key.cell != "sampled"}


def test_loops_that_no_unit_causes_are_not_blamed_on_one(found: dict[str, dict[str, Any]]) -> None:
    assert found["no_circuit"]["units"] is None
    assert found["no_circuit"]["why_none"].startswith(("no candidate", "the best candidate"))


def test_a_model_that_never_loops_has_nothing_to_find(found: dict[str, dict[str, Any]]) -> None:
    assert found["healthy"]["why_none"] == (
        "no answer of the unpatched model ends in a loop, so there is nothing to cure"
    )
