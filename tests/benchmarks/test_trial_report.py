# SPDX-License-Identifier: Apache-2.0
"""The report of a trial of a cure: complete cells alone, and what their figures are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.benchmarks.trial_report import WEIGHTS, _share, cell_figures, finished, looked_into, write
from vllm_surgery.evaluation.arms import of_penalty, of_rescue, of_server, unpatched
from vllm_surgery.evaluation.protocol import Cell, Protocol
from vllm_surgery.evaluation.records import Key, Record
from vllm_surgery.evaluation.trial import Trial, TrialFolder
from vllm_surgery.intervals import wilson
from vllm_surgery.loops import TokenTable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vllm_surgery.evaluation.backends.base import Job
    from vllm_surgery.intervals import Estimate

ABOUT: dict[str, Any] = {"model": "tiny", "engine": "fake 0", "vllm_surgery": "0", "fingerprint": "f00", "sham_seed": 1}
LISTS = """name: mine
use: loops
probes:
  - {id: a.one, subject: a, prompt: List one, items: [red, blue]}
  - {id: a.two, subject: a, prompt: List two, items: [red, blue]}
  - {id: b.one, subject: b, prompt: List three}
"""
WORDS = [" and", *(f" w{number}" for number in range(99))]
TABLE = TokenTable(WORDS)
ARMS = [unpatched(), of_penalty(1.15), of_rescue("stop")]


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    file = tmp_path / "mine.yaml"
    file.write_text(LISTS)
    cells = [
        Cell(name="greedy", sets=[str(file)], temperature=0, max_tokens=10),
        Cell(name="long", sets=[str(file)], temperature=0, max_tokens=20, every=2),
    ]
    return Trial.of(Protocol(name="wide", cells=cells), ARMS, ABOUT)


def record(job: Job) -> Record:
    """An answer: of prompts about `a` one that loops, unless there is a penalty; the penalty changes sound ones too."""
    penalized = job.key.arm == "penalty-1.15"
    if job.key.probe.startswith("a") and not penalized:
        return Record(job.key, "none", job.prompt, job.sampling, "1. red\n2. red", [1, 2, 3, 4] * 40, "length")
    tokens = list(range(99, 50, -1) if penalized else range(1, 60))
    return Record(job.key, "none", job.prompt, job.sampling, "1. red\n2. blue", tokens, "stop")


def answers(trial: Trial, cells: Sequence[str]) -> list[Record]:
    return [looked_into(record(job), TABLE) for arm in trial.arms for job in trial.jobs(arm) if job.key.cell in cells]


def test_loops_are_looked_for_again(trial: Trial) -> None:
    job = trial.jobs(ARMS[0])[0]
    assert record(job).loops == []
    assert [loop.outcome for loop in looked_into(record(job), TABLE).loops] == ["terminal"]


def test_answers_of_another_server_are_told_as_they_were_found(trial: Trial, tmp_path: Path) -> None:
    arms = [unpatched(), of_server("other", "http://x")]
    trial, folder = Trial(trial.protocol, trial.sets, arms, ABOUT), TrialFolder(tmp_path / "out")
    folder.open(trial)
    folder.add([record(job) for arm in arms for job in trial.jobs(arm)])  # In which nobody has found anything yet.
    said = write(folder.path, TABLE)
    assert "| unpatched | 2 of 3: " in said
    assert "| other | 0 of 3: " in said


def test_a_cell_that_lacks_an_answer_is_not_told(trial: Trial) -> None:
    records = answers(trial, ["greedy", "long"])
    cut, kept = finished(trial, records[:-1])
    assert [cell.name for cell in cut.protocol.cells] == ["greedy"]
    assert {one.key.cell for one in kept} == {"greedy"}
    assert finished(trial, records) == (trial, records)


def test_figures_of_each_arm(trial: Trial) -> None:
    base, penalty, rescue = cell_figures(trial, trial.protocol.cell("greedy"), answers(trial, ["greedy"]))
    assert (round(base.looped.value, 3), penalty.looped.value) == (0.667, 0)
    assert (base.right, penalty.right) == (1, 2)
    assert (base.against, base.sound) == (None, 1)
    assert (penalty.same, rescue.same) == (0, 1)
    assert penalty.against is not None
    assert (penalty.against.rescued, penalty.against.probes, penalty.against.clusters) == (
        2,
        3,
        2,
    )  # Both are about `a`.


def test_a_rate_of_none_or_all_has_wilsons_interval_over_subjects(trial: Trial) -> None:
    base, penalty, _ = cell_figures(trial, trial.protocol.cell("greedy"), answers(trial, ["greedy"]))
    assert penalty.looped == wilson(0, 2)  # Three prompts about two things.
    assert (base.looped.low, base.looped.high) == (0, 1)  # By the bootstrap, as before.
    assert share([True] * 3, ["a", "a", "b"]) == wilson(2, 2)


def share(looped: Sequence[bool], subjects: Sequence[str]) -> Estimate:
    kept = [Record(Key("a", "c", "s", "p", 0), None, "", {}, "", [], "stop") for _ in looped]
    told = dict(zip(map(id, kept), looped, strict=True))
    return _share(kept, subjects, lambda one: told[id(one)])


def test_what_has_no_interval_is_told_without_one(trial: Trial, tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path / "out")
    folder.open(trial)
    folder.add(answers(trial, ["greedy"]))
    said = write(folder.path, TABLE)
    assert "| penalty-1.15 | 0 of 3: 0 % (0 to 66) |" in said
    assert "| rescue-stop | 2 of 3: 67 % (0 to 100) | 2 verbatim | 0 of 3: 0 % (0 to 66) | +0; +0 |" in said
    assert "nan" not in said


def test_the_report_says_what_is_missing_and_what_agrees(trial: Trial, tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path / "out")
    folder.open(trial)
    assert "**No result yet**" in write(folder.path, TABLE)
    folder.add(answers(trial, ["greedy"]))
    other = TrialFolder(folder.path / WEIGHTS)
    other.open(trial)
    other.add([one for one in answers(trial, ["greedy"]) if one.key.arm == "unpatched"])
    said = write(folder.path, TABLE)
    assert "- not complete, and so not told: long" in said
    assert "| penalty-1.15 | 0 of 3: 0 %" in said
    assert "- unpatched: 3 of 3" in said
    assert "long: greedy" not in said
    assert (folder.path / "trial.md").read_text() == said + "\n"


def test_seeds_of_one_prompt_are_told_prompt_by_prompt(trial: Trial, tmp_path: Path) -> None:
    (cell, _) = trial.protocol.cells
    sampled = cell.model_copy(update={"name": "sampled", "temperature": 0.7, "seeds": 2})
    trial = Trial.of(Protocol(name="default", cells=[sampled]), ARMS, ABOUT)
    folder = TrialFolder(tmp_path / "out")
    folder.open(trial)
    folder.add(answers(trial, ["sampled"]))
    said = write(folder.path, TABLE)
    assert f"protocol `default`: `{cell.sets[0]}`" in said
    assert "| of 2 answers to | unpatched | penalty-1.15 | rescue-stop |" in said
    assert "| a.one | 2 | 0 | 2 |" in said
    assert "| b.one | 0 | 0 | 0 |" in said
