# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.benchmarks.shams import make_shams, plan_of
from tests.folders import write_model
from vllm_surgery.checkpoint import ModelFolder
from vllm_surgery.errors import SurgeryError
from vllm_surgery.patch import Patch

if TYPE_CHECKING:
    from pathlib import Path

PATCH = Patch.from_data(
    {
        "version": 1,
        "name": "true",
        "edits": [
            {"op": "scale", "factor": 5.0, "neurons": {"1": [2, 7]}},
            {"op": "negate", "neurons": {"0": [3]}},
        ],
    }
)


@pytest.fixture
def folder(tmp_path: Path) -> ModelFolder:
    return ModelFolder(write_model(tmp_path / "model", [16, 16]))


def gains(patch: Patch, folder: ModelFolder) -> list[tuple[str, tuple[float, ...]]]:
    return [(edit.tensor, edit.gains) for edit in plan_of(patch, folder).edits]


def test_shams_do_the_same_to_other_neurons(folder: ModelFolder):
    shams = make_shams(PATCH, folder, 3, seed=1)
    assert [gains(sham.patch, folder) for sham in shams] == [gains(PATCH, folder)] * 3
    named = [neuron for sham in shams for neuron in sham.neurons]
    assert len(set(named)) == 9
    assert not set(named) & {(1, 2), (1, 7), (0, 3)}
    assert all(0.1 < sham.norm_ratio < 10 for sham in shams)


def test_a_seed_gives_the_same_shams(folder: ModelFolder):
    assert make_shams(PATCH, folder, 2, seed=5) == make_shams(PATCH, folder, 2, seed=5)


def test_no_room_for_shams_is_refused(folder: ModelFolder):
    with pytest.raises(SurgeryError, match="leave no room for 8 shams"):
        make_shams(PATCH, folder, 8, seed=1)
