# SPDX-License-Identifier: Apache-2.0
"""What the benchmark of candidates measures, and what it says of that."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from tests.benchmarks.candidate_cost import SLOTS, SWAPS, candidates_of, greedy, render
from tests.examples import patch_data
from tests.folders import write_model
from vllm_surgery.evaluation import Key, Record, TrialFolder
from vllm_surgery.patch.format import Patch

if TYPE_CHECKING:
    from pathlib import Path


def patch_in(folder: Path) -> Path:
    file = folder / "cure.yaml"
    data = {**patch_data(name="cure"), "edits": [{"op": "negate", "neurons": {"0": [1, 2], "1": [3]}}]}
    file.write_text(Patch.from_data(data).to_yaml())
    return file


def test_no_candidate_is_measured_twice_and_half_are_doses_of_the_patch(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", (64, 64))
    rounds = candidates_of(model, patch_in(tmp_path), rounds=3, count=8)
    every = [one for each in rounds for one in each]
    assert [len(each) for each in rounds] == [8, 8, 8]
    assert len({one.id for one in every}) == 24
    assert [one.units for one in rounds[0]] == [1, 3] * 4
    assert candidates_of(model, patch_in(tmp_path), rounds=3, count=8) == rounds


def test_greedy_answers_of_candidates_are_held_against_each_other(tmp_path: Path) -> None:
    def record(arm: str, cell: str, probe: str, *tokens: int) -> Record:
        return Record(Key(arm, cell, "s", probe, 0), None, "?", {}, "", list(tokens), "stop")

    folders = {way: TrialFolder(tmp_path / way) for way in (SLOTS, SWAPS)}
    for way, last in ((SLOTS, 2), (SWAPS, 3)):
        folders[way].path.mkdir()
        folders[way].add(
            [record("none", "greedy", "a", 1), record("x", "greedy", "a", 1), record("x", "greedy", "b", last)]
        )
        folders[way].add([record("x", "sampled", "a", last)])
    assert greedy({way: folder.path for way, folder in folders.items()}) == (2, 1)


def test_the_report_has_the_ratio_of_each_round(tmp_path: Path) -> None:
    arguments = Namespace(candidates=8, patch=patch_in(tmp_path), max_tokens=96, rounds=2)
    lines = render({SWAPS: [2.0, 4.0], SLOTS: [6.0, 8.0]}, (96, 95), 0.5, arguments)
    assert "| slots | 7.00 (6.00 to 8.00) |" in lines
    assert lines[-1] == (
        "Slots over swaps in the same round: 2.50 (2.00 to 3.00). Of 96 greedy answers 95 are the same both ways."
    )
