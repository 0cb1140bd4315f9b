# SPDX-License-Identifier: Apache-2.0
"""Shams do the same as a patch, to other units of like norm."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.folders import write_model
from vllm_surgery.errors import UsageError
from vllm_surgery.evaluation.shams import make_shams
from vllm_surgery.model.checkpoint import ModelFolder
from vllm_surgery.patch.format import Patch

if TYPE_CHECKING:
    from collections.abc import Callable
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


def test_shams_do_the_same_to_other_neurons(folder: ModelFolder) -> None:
    shams = make_shams(PATCH, folder, 3, seed=1)
    done = [[(unit.layer, gain) for unit, gain in sham.units.items()] for sham in shams]
    assert done == [[(0, -1.0), (1, 5.0), (1, 5.0)]] * 3
    assert len({sham.patch.id for sham in shams}) == 3
    named = [(unit.layer, unit.index) for sham in shams for unit in sham.units]
    assert len(set(named)) == 9
    assert not set(named) & {(1, 2), (1, 7), (0, 3)}


def test_a_seed_gives_the_same_shams(folder: ModelFolder) -> None:
    assert make_shams(PATCH, folder, 2, seed=5) == make_shams(PATCH, folder, 2, seed=5)
    assert make_shams(PATCH, folder, 2, seed=5) != make_shams(PATCH, folder, 2, seed=6)


def test_stand_ins_have_a_like_norm(tmp_path: Path) -> None:
    folder = ModelFolder(write_model(tmp_path / "wide", [2000]))
    patch = Patch.from_data({"version": 1, "name": "p", "edits": [{"op": "zero", "neurons": {"0": [5, 6]}}]})
    for sham in make_shams(patch, folder, 5, seed=2):
        assert sham.norm_ratio == pytest.approx(1, abs=0.15)


def test_the_norm_is_the_columns_own(tmp_path: Path) -> None:
    folder = ModelFolder(write_model(tmp_path / "bf16", [16], dtype="BF16"))
    patch = Patch.from_data({"version": 1, "name": "p", "edits": [{"op": "zero", "neurons": {"0": [5]}}]})
    (sham,) = make_shams(patch, folder, 1, seed=2)

    def norm(index: int) -> float:
        bits = np.frombuffer(folder.read_slice("model.layers.0.mlp.down_proj.weight", 1, index), "<u2")
        return float(np.linalg.norm((bits.astype("<u4") << 16).view("<f4")))

    assert sham.norm_ratio == pytest.approx(norm(next(iter(sham.units)).index) / norm(5))


def test_experts_have_shams_too(family_model: Callable[[str], Path]) -> None:
    folder = ModelFolder(family_model("Mixtral"))
    patch = Patch.from_data({"version": 1, "name": "p", "edits": [{"op": "zero", "experts": {"0": [1]}}]})
    (sham,) = make_shams(patch, folder, 1, seed=2)
    (unit,) = sham.units
    assert unit.kind == "experts"
    assert unit.index != 1
    assert sham.norm_ratio is None


def test_no_room_for_shams_is_refused(folder: ModelFolder) -> None:
    with pytest.raises(UsageError, match="leave no room for 8 shams"):
        make_shams(PATCH, folder, 8, seed=1)
