# SPDX-License-Identifier: Apache-2.0
"""Which layers matter: those without which there are fewer loops in a language that is still the model's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.folders import write_experts
from tests.localization.fake import LAYERS, measure_of
from vllm_surgery.localization.search.search import (
    DESTROYED_KL,
    MIN_BLOCKS_KEPT,
    ablation,
    blocks,
    blocks_reducing_loops,
)
from vllm_surgery.model.checkpoint import ModelFolder
from vllm_surgery.patch.units import UnitBlock

if TYPE_CHECKING:
    from pathlib import Path

    from vllm_surgery.localization.search.measurements import Measurement


def silenced(layer: int, looped: int, kl: float | None = 0.5) -> Measurement:
    return measure_of(ablation(UnitBlock("neurons", layer)), looped, kl)


def test_a_dense_model_has_an_mlp_in_each_layer(tiny: ModelFolder) -> None:
    every = [("neurons", layer) for layer in range(LAYERS)]
    assert blocks(tiny.anatomy, ["neurons", "experts"]) == every
    assert blocks(tiny.anatomy, ["experts"]) == []


def test_experts_and_the_mlp_beside_them_are_blocks_of_their_own(tmp_path: Path) -> None:
    anatomy = ModelFolder(write_experts(tmp_path, "scaled")).anatomy
    mlps, experts = [("neurons", 0), ("neurons", 1)], [("experts", 0), ("experts", 1)]
    assert blocks(anatomy, ["neurons", "experts"]) == [*mlps, *experts]
    assert blocks(anatomy, ["experts", "neurons"]) == [*experts, *mlps]


def test_a_block_is_silenced_as_a_whole() -> None:
    edits = ablation(UnitBlock("experts", 2)).patch("some", {}).to_data()["edits"]
    assert edits == [{"op": "zero", "experts": {"2": "all"}}]


def test_those_without_which_loops_are_fewest_come_first() -> None:
    measures = [silenced(0, 9), silenced(1, 10), silenced(2, 3, 1.0), silenced(3, 3, 0.1), silenced(4, 11)]
    assert blocks_reducing_loops(measures) == [("neurons", 3), ("neurons", 2), ("neurons", 0)]


@pytest.mark.parametrize("kl", [DESTROYED_KL, float("nan"), None])
def test_a_layer_without_which_the_model_is_another_says_nothing(kl: float | None) -> None:
    measures = [silenced(0, 0, kl), silenced(1, 5)]
    assert blocks_reducing_loops(measures) == [("neurons", 1)]


@pytest.mark.parametrize(("layers", "kept"), [(3, 3), (6, MIN_BLOCKS_KEPT), (30, 10)])
def test_a_third_is_kept_and_so_many_at_least(layers: int, kept: int) -> None:
    found = blocks_reducing_loops([silenced(layer, 1) for layer in range(layers)])
    assert found == [("neurons", layer) for layer in range(kept)]


def test_where_none_makes_a_difference_all_are_kept() -> None:
    measures = [silenced(layer, 10) for layer in range(9)]
    assert blocks_reducing_loops(measures) == [("neurons", layer) for layer in range(9)]
    assert blocks_reducing_loops([]) == []
