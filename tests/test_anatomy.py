# SPDX-License-Identifier: Apache-2.0
"""Which tensor is which part of which layer."""

from __future__ import annotations

import pytest

from tests.examples import refusal
from tests.folders import mlp_tensors
from vllm_surgery import CheckpointError
from vllm_surgery.anatomy import Anatomy, locate
from vllm_surgery.checkpoint import TensorInfo


def anatomy(*tensors: TensorInfo, layers: int | None = None) -> Anatomy:
    return Anatomy.of(tensors, layers)


def infos(*widths: int, **options: str) -> list[TensorInfo]:
    return [tensor.info(name) for name, tensor in mlp_tensors(widths, **options).items()]


@pytest.mark.parametrize(
    ("name", "layer", "role", "axis"),
    [
        ("model.layers.0.mlp.gate_proj.weight", 0, "gate", 0),
        ("model.layers.12.mlp.up_proj.weight", 12, "up", 0),
        ("model.language_model.layers.3.mlp.down_proj.weight", 3, "down", 1),
        ("language_model.model.layers.3.mlp.down_proj.weight", 3, "down", 1),
    ],
)
def test_a_part_of_a_gated_mlp_is_located(name: str, layer: int, role: str, axis: int) -> None:
    slot = locate(name)
    assert slot is not None
    assert (slot.layer, slot.part.role, slot.part.unit_axis) == (layer, role, axis)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.mlp.gate_up_proj.weight",
        "model.layers.0.mlp.down_proj.bias",
        "model.layers.0.mlp.experts.3.down_proj.weight",
        "model.layers.0.mlp.shared_expert.down_proj.weight",
        "model.layers.0.self_attn.o_proj.weight",
        "model.vision_tower.layers.0.mlp.down_proj.weight",
        "vision_tower.encoder.layers.0.mlp.down_proj.weight",
        "xmodel.layers.0.mlp.down_proj.weight",
        "model.layers.0.mlp.down_proj.weight.extra",
        "model.layers.x.mlp.down_proj.weight",
    ],
)
def test_anything_else_is_not(name: str) -> None:
    assert locate(name) is None


def test_each_layer_has_its_own_width() -> None:
    assert anatomy(*infos(6, 12, 6)).widths() == {0: 6, 1: 12, 2: 6}


def test_layers_past_the_last_are_left_out() -> None:
    assert anatomy(*infos(6, 6, 6), layers=2).widths() == {0: 6, 1: 6}


def test_what_is_missing_is_known() -> None:
    mlp = anatomy(*[info for info in infos(6) if "up_proj" not in info.name]).mlps[0]
    assert mlp.missing() == ["up"]


def test_two_tensors_for_one_part_are_refused() -> None:
    twice = [*infos(6), *infos(6, prefix="language_model.model")]
    said = (
        "model.layers.0.mlp.gate_proj.weight and language_model.model.layers.0.mlp.gate_proj.weight "
        "are both the gate part of one MLP"
    )
    assert refusal(lambda: anatomy(*twice), CheckpointError) == said


@pytest.mark.parametrize("shape", [(6,), (6, 4), (4, 7), (4, 6, 1)])
def test_shapes_that_no_gated_mlp_has_are_refused(shape: tuple[int, ...]) -> None:
    tensors = [*infos(6)[:2], TensorInfo("model.layers.0.mlp.down_proj.weight", "F32", shape)]
    assert refusal(lambda: anatomy(*tensors), CheckpointError).startswith("not the shapes of a gated MLP: ")


def test_packed_shapes_are_not_judged() -> None:
    packed = TensorInfo("model.layers.0.mlp.down_proj.weight", "U8", (3, 5))
    assert anatomy(*infos(6)[:2], packed).widths() == {}
