# SPDX-License-Identifier: Apache-2.0
"""The edit that was found, judged once on probes that the search never saw."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.localization.fake import PROBES, TABLE, FakeModel, candidate, neuron, settings_in
from vllm_surgery.evaluation.analysis.summary import JUDGED
from vllm_surgery.evaluation.trial import TrialFolder
from vllm_surgery.localization.held_out import (
    CellKind,
    HeldOutResult,
    TrialContext,
    cells_and_kinds,
    evidence,
    run_held_out_trial,
)
from vllm_surgery.patch.format import Patch

if TYPE_CHECKING:
    from pathlib import Path

    from vllm_surgery.model.checkpoint import ModelFolder

pytestmark = pytest.mark.usefixtures("no_waiting_for_disks")

CAUSE, OTHER = neuron(1, 5), neuron(0, 3)
CURE = candidate(CAUSE).patch("cure", {})
ANSWERS, LOOPED = 2 * PROBES, 2 * PROBES * 2 // 3


def judged(folder: Path, model: FakeModel, tiny: ModelFolder, patch: Patch = CURE, **changes: Any) -> HeldOutResult:
    context = TrialContext(model, TABLE, folder / "held-out", {"model": "fake"}, quiet=True)
    return run_held_out_trial(patch, tiny, settings_in(folder, **changes), context)


def test_a_cure_holds(tmp_path: Path, tiny: ModelFolder) -> None:
    found = judged(tmp_path, FakeModel(causes=frozenset({CAUSE})), tiny)
    assert (found.holds, found.rises, found.notes) == (True, [], [])
    assert found.summary.verdicts["cure"].word == "fewer loops"
    assert (tmp_path / "held-out" / "report.html").exists()


def test_only_the_held_out_half_is_asked_of_every_arm(tmp_path: Path, tiny: ModelFolder) -> None:
    found = judged(tmp_path, FakeModel(causes=frozenset({CAUSE})), tiny)
    names = [one.arm.name for one in found.summary.arms]
    assert names == ["unpatched", "cure", "cure/sham-1", "cure/sham-2", "cure/sham-3", "penalty-1.15"]
    keys = [record.key for record in TrialFolder(tmp_path / "held-out").records()]
    assert len(keys) == len(set(keys)) == len(names) * (ANSWERS + 4)
    assert {key.set.rpartition(":")[2] for key in keys if key.cell != "side"} == {"held-out"}


def test_an_edit_that_does_nothing_does_not_hold(tmp_path: Path, tiny: ModelFolder) -> None:
    found = judged(tmp_path, FakeModel(causes=frozenset({OTHER})), tiny)
    assert not found.holds
    assert found.summary.verdicts["cure"].word == "no effect shown"


def test_a_cure_that_costs_tasks_does_not_hold(tmp_path: Path, tiny: ModelFolder) -> None:
    found = judged(tmp_path, FakeModel(causes=frozenset({CAUSE}), harmful=frozenset({CAUSE})), tiny)
    assert not found.holds
    assert found.summary.verdicts["cure"].word == "fewer loops, at a cost"


def test_a_kind_of_loop_that_becomes_more_frequent_is_not_made_up_for_by_others(
    tmp_path: Path, tiny: ModelFolder
) -> None:
    model = FakeModel(causes=frozenset({CAUSE}), breeders=frozenset({CAUSE}))
    found = judged(tmp_path, model, tiny, held_out_seeds=6)
    assert found.summary.verdicts["cure"].word == "fewer loops"
    assert found.rises == [f"decay loops, sampled: 0 to 6 of {6 * PROBES}"]
    assert not found.holds


def test_each_kind_is_counted_in_each_cell(tmp_path: Path, tiny: ModelFolder) -> None:
    judged(tmp_path, FakeModel(causes=frozenset({CAUSE}), breeders=frozenset({CAUSE})), tiny)
    folder = TrialFolder(tmp_path / "held-out")
    found = {(one.cell, one.kind): one for one in cells_and_kinds(folder.trial(), folder.records(), "cure")}
    assert set(found) == {
        (cell, kind) for cell in ("greedy", "sampled") for kind in ("verbatim", "decay", "collapse", "doom")
    }
    assert found["greedy", "verbatim"] == CellKind("greedy", "verbatim", PROBES, LOOPED // 2, 0, LOOPED // 2, 0)
    assert found["sampled", "decay"] == CellKind("sampled", "decay", PROBES, 0, 1, 0, 1)


@pytest.mark.parametrize(
    ("rescued", "newly", "rises"),
    [(0, 5, False), (0, 6, True), (5, 0, False), (6, 0, False), (4, 9, False), (2, 14, True)],
)
def test_more_than_chance_would_give(rescued: int, newly: int, rises: bool) -> None:
    assert CellKind("c", "decay", 40, 10, 10 + newly - rescued, rescued, newly).rises is rises


def test_there_are_as_many_shams_as_there_is_room_for(tmp_path: Path, tiny: ModelFolder) -> None:
    patch = candidate(CAUSE, neuron(1, 0), neuron(1, 1)).patch("cure", {})
    found = judged(tmp_path, FakeModel(causes=frozenset({CAUSE})), tiny, patch)
    assert [one.arm.name for one in found.summary.arms if one.arm.kind == "sham"] == ["cure/sham-1"]
    (note,) = found.notes
    assert note.startswith("1 of 3 shams: ")


def test_without_room_for_a_sham_nothing_is_called_a_cure(tmp_path: Path, tiny: ModelFolder) -> None:
    patch = candidate(*(neuron(1, index) for index in range(5))).patch("cure", {})
    found = judged(tmp_path, FakeModel(causes=frozenset({CAUSE})), tiny, patch)
    assert found.notes[0].startswith("no shams: ")
    assert not found.holds


def test_nothing_is_asked_twice(tmp_path: Path, tiny: ModelFolder) -> None:
    first = judged(tmp_path, FakeModel(causes=frozenset({CAUSE})), tiny)
    idle = FakeModel(stop_after=0)
    again = judged(tmp_path, idle, tiny)
    assert (again, idle.asked, idle.swaps) == (first, [], [])


def test_the_evidence_is_plain_data_that_a_patch_file_holds(tmp_path: Path, tiny: ModelFolder) -> None:
    said = evidence(judged(tmp_path, FakeModel(causes=frozenset({CAUSE})), tiny), "cure")
    patch = Patch.from_data({**CURE.to_data(), "provenance": {"evidence": said}})
    assert Patch.parse(patch.to_yaml()).provenance["evidence"] == said
    rates = said["answers-that-end-in-a-loop"]
    assert said["verdict"] == "fewer loops"
    assert rates["unpatched"].startswith(f"{LOOPED} of {ANSWERS} (66.7 %, Wilson 95 % ")
    assert rates["unpatched"].endswith(f"; {LOOPED} verbatim")
    assert rates["patch"].startswith(f"0 of {ANSWERS} (0.0 %")
    assert len(rates["shams"]) == 3
    assert rates["penalty-1.15"].startswith(f"{LOOPED} of ")
    assert said["difference"].startswith("-66.7 (")
    assert f"{LOOPED} rescued, 0 new" in said["difference"]
    assert said["tasks"] == {"skills.yaml": "4 of 4 right, 0 lost, 0 won"}
    assert said["healthy-text"].startswith("KL 0.0000 nats a token")


def test_the_evidence_says_what_signs_were_flipped_of(tmp_path: Path, tiny: ModelFolder) -> None:
    found = judged(tmp_path, FakeModel(causes=frozenset({CAUSE})), tiny)
    assert f"sign-flip over {PROBES} probes p " in evidence(found, "cure")["difference"]
    own = next(one for one in found.summary.arms if one.arm.name == "cure")
    own.against[JUDGED] = replace(own.against[JUDGED], clusters=PROBES - 1)
    assert f"sign-flip over {PROBES - 1} subjects p " in evidence(found, "cure")["difference"]


def test_task_files_of_one_name_stay_apart(tmp_path: Path, tiny: ModelFolder) -> None:
    settings = settings_in(tmp_path)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "skills.yaml").write_text((tmp_path / "probes" / "skills.yaml").read_text())
    tasks = [*settings.held_out_tasks, str(tmp_path / "more" / "skills.yaml")]
    found = judged(tmp_path, FakeModel(causes=frozenset({CAUSE})), tiny, held_out_tasks=tasks)
    assert list(evidence(found, "cure")["tasks"]) == ["skills.yaml", "skills.yaml (2)"]


def test_evidence_without_text_says_nothing_of_it(tmp_path: Path, tiny: ModelFolder) -> None:
    said = evidence(
        judged(tmp_path, FakeModel(causes=frozenset({CAUSE})), tiny, held_out_text=[], held_out_tasks=[]), "cure"
    )
    assert "healthy-text" not in said
    assert said["tasks"] == {}
