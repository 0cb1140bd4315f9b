# SPDX-License-Identifier: Apache-2.0
"""Passages count alike; units are ranked by how differently they act inside a loop, and the sign stays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.folders import write_model
from vllm_surgery.errors import EngineError, UsageError
from vllm_surgery.localization.ranking.activity import (
    Activity,
    ExpertActivity,
    NeuronActivity,
    PassageMeans,
    measure_activity,
    summarise,
)
from vllm_surgery.localization.ranking.read_engine import merge_ranks
from vllm_surgery.localization.ranking.scores import rank_by_activity
from vllm_surgery.localization.transcripts import Passage
from vllm_surgery.model.checkpoint import ModelFolder
from vllm_surgery.patch.units import Unit

if TYPE_CHECKING:
    from pathlib import Path

LOOPING, ENDING = Passage([0] * 10, 2, 6), Passage([0] * 5, 2)


def values(*quantities: list[list[float]]) -> Any:
    """For each quantity what it is before and inside the loop."""
    return np.array(quantities, np.float32)


def packed(*groups: list[float]) -> list[bytes]:
    return [np.array(group, np.float32).tobytes() for group in groups]


def test_passages_count_alike_and_only_those_that_loop_count_inside() -> None:
    seen = [
        PassageMeans(values([[1, 1], [2, 5]], [[1, 3], [2, 5]]), loops=True),
        PassageMeans(values([[3, 0], [4, -5]], [[3, 9], [4, 5]]), loops=True),
        PassageMeans(values([[5, 5], [0, 0]], [[5, 6], [0, 0]]), loops=False),
    ]
    activity = summarise({("neurons", 4): seen}, [LOOPING, LOOPING, ENDING])
    assert (activity.passages, activity.looping, activity.experts) == (3, 2, {})
    found = activity.neurons[4]
    assert found.mean_before.tolist() == [3, 2]
    assert found.mean_after.tolist() == [3, 0]
    assert found.size_before.tolist() == [3, 6]
    assert found.size_after.tolist() == [3, 5]
    assert found.agreement.tolist() == [1, 0.5]
    assert {array.dtype for array in vars(found).values()} == {np.dtype(np.float32)}


def test_experts_have_norms_where_their_kernel_gives_any() -> None:
    seen = {
        ("experts", 0): [PassageMeans(values([[0.5, 1], [1, 0.5]], [[2, 8], [4, 4]]), loops=True)],
        ("experts", 1): [PassageMeans(values([[0.5, 1], [1, 0.5]]), loops=True)],
    }
    experts = summarise(seen, [LOOPING]).experts
    assert experts[0].norm_before is not None
    assert experts[0].norm_before.tolist() == [2, 8]
    assert experts[0].agreement.tolist() == [1, 0]
    assert (experts[1].norm_before, experts[1].norm_after) == (None, None)
    assert experts[1].agreement.tolist() == [1, 0]


def test_ranks_parts_of_a_layer_are_put_together_in_order() -> None:
    right = {"kind": "neurons", "layer": 0, "offset": 2, "mean": packed([3, 4], [7, 8]), "size": packed([3, 4], [7, 8])}
    left = {"kind": "neurons", "layer": 0, "offset": 0, "mean": packed([1, 2], [5, 6]), "size": packed([1, 2], [5, 6])}
    expert = {"kind": "experts", "layer": 1, "frequency": packed([1, 0], [0, 1]), "norm": None}
    found = merge_ranks([[right, expert], [left, expert]])
    assert found["neurons", 0].tolist() == [[[1, 2, 3, 4], [5, 6, 7, 8]]] * 2
    assert found["experts", 1].tolist() == [[[1, 0], [0, 1]]]
    with pytest.raises(EngineError, match=r"^layer 0: neurons from 0 to 1 were recorded by no rank$"):
        merge_ranks([[right]])


@pytest.mark.parametrize(
    ("passages", "said"),
    [([ENDING], "no transcript ends in a loop"), ([LOOPING, Passage([0] * 9, 4, 4)], "nothing before")],
)
def test_without_two_sides_there_is_nothing_to_measure(passages: list[Passage], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        measure_activity(None, passages)


def neurons(before: list[float], after: list[float]) -> NeuronActivity:
    low, high = np.array(before, np.float32), np.array(after, np.float32)
    return NeuronActivity(low, high, low, high, np.ones_like(low))


def experts(before: list[float], after: list[float], *, norms: bool = True) -> ExpertActivity:
    low, high = np.array(before, np.float32), np.array(after, np.float32)
    return ExpertActivity(low / 10, high / 10, low if norms else None, high if norms else None, np.ones_like(low))


def column_norms(folder: ModelFolder, layer: int, hidden: int = 4) -> Any:
    content = folder.read_slice(f"model.layers.{layer}.mlp.down_proj.weight", None, 0)
    return np.linalg.norm(np.frombuffer(content, "<f4").reshape(hidden, -1), axis=0)


def test_neurons_are_weighed_by_what_they_add_and_keep_their_sign(tmp_path: Path) -> None:
    folder = ModelFolder(write_model(tmp_path / "model", [3, 3]))
    found = rank_by_activity(Activity({1: neurons([1, 9, 4], [2, 1, 4])}, {}, 1, 1), folder)
    expected = np.array([1, -8, 0]) * column_norms(folder, 1)
    assert [one.unit for one in found] == [Unit("neurons", 1, index) for index in (1, 0, 2)]
    assert [one.score for one in found] == pytest.approx([expected[1], expected[0], 0])


def test_where_one_layers_weights_cannot_be_read_all_weigh_alike(tmp_path: Path) -> None:
    folder = ModelFolder(write_model(tmp_path / "model", [2]))
    activity = Activity({0: neurons([0, 0], [1, -3]), 7: neurons([0, 0], [2, 0])}, {}, 1, 1)
    assert [one.score for one in rank_by_activity(activity, folder)] == [-3, 2, 1, 0]


@pytest.mark.parametrize(("norms", "scores"), [(True, [-4, 3, 2, 1]), (False, [-0.4, 0.3, 0.2, 0.1])])
def test_experts_are_scored_by_their_norms_or_all_by_frequency(
    tmp_path: Path, norms: bool, scores: list[float]
) -> None:
    folder = ModelFolder(write_model(tmp_path / "model", [2]))
    activity = Activity({}, {0: experts([0, 4], [1, 0]), 1: experts([0, 0], [2, 3], norms=norms)}, 1, 1)
    found = rank_by_activity(activity, folder)
    assert [one.score for one in found] == pytest.approx(scores)
    assert [(one.unit.layer, one.unit.index) for one in found] == [(0, 1), (1, 1), (1, 0), (0, 0)]
