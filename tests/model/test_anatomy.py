# SPDX-License-Identifier: Apache-2.0
"""Anatomy: which tensor holds which part of which unit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import refusal
from tests.folders import mlp_tensors
from vllm_surgery.errors import CheckpointError
from vllm_surgery.model.anatomy import Anatomy
from vllm_surgery.model.conventions import ROOTS, TensorRole, classify_tensor
from vllm_surgery.model.tensor_info import TensorInfo

DOWN = "model.layers.0.mlp.down_proj.weight"
UP = "model.layers.0.mlp.up_proj.weight"


def infos(*widths: int, prefix: str = "model") -> list[TensorInfo]:
    return [tensor.info(name) for name, tensor in mlp_tensors(widths, prefix=prefix).items()]


@pytest.mark.parametrize(("part", "part_name", "axis"), [("gate", "gate", 0), ("up", "up", 0), ("down", "down", 1)])
@pytest.mark.parametrize("root", ROOTS)
def test_the_parts_of_a_layer_are_found_under_each_root(root: str, part: str, part_name: str, axis: int) -> None:
    role = classify_tensor(f"{root}.layers.17.mlp.{part}_proj.weight")

    assert role is not None
    assert (role.block, role.layer, role.part.name, role.part.unit_axis) == ("mlp", 17, part_name, axis)


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.o_proj.weight",
        "model.layers.0.mlp.gate.weight",
        "model.layers.0.mlp.shared_expert_gate.weight",
        # Other stacks of layers: vision and audio towers, draft models.
        "visual.blocks.0.mlp.down_proj.weight",
        "model.visual.layers.0.mlp.down_proj.weight",
        "vision_tower.model.layers.0.mlp.down_proj.weight",
        "model.vision_tower.encoder.layers.0.mlp.down_proj.weight",
        "vision_model.encoder.layers.0.mlp.down_proj.weight",
        "audio_tower.layers.0.mlp.down_proj.weight",
        "model.audio_tower.layers.0.mlp.down_proj.weight",
        "mtp.layers.0.mlp.down_proj.weight",
        # Not quite the name.
        "xmodel.layers.0.mlp.down_proj.weight",
        "model_layers.0.mlp.down_proj.weight",
        "model.layers.0.mlp.down_proj.weight\n",
        "model.layers.0.mlp.down_proj.weight.extra",
        "model.layers.00.mlp.down_proj.weight",
        "model.layers.-1.mlp.down_proj.weight",
        "model.layers.٣.mlp.down_proj.weight",
        f"model.layers.{'9' * 5000}.mlp.down_proj.weight",
        "model.layers..mlp.down_proj.weight",
        "",
    ],
)
def test_anything_else_is_no_part(name: str) -> None:
    assert classify_tensor(name) is None


def test_layers_have_their_own_widths() -> None:
    assert Anatomy.of(infos(6, 12, 6)).widths() == {0: 6, 1: 12, 2: 6}


@given(st.permutations(infos(6, 12)))
def test_the_order_of_tensors_does_not_matter(tensors: list[TensorInfo]) -> None:
    found = Anatomy.of(tensors)

    assert {layer: mlp.tensors for layer, mlp in found.mlps.items()} == {
        layer: mlp.tensors for layer, mlp in Anatomy.of(infos(6, 12)).mlps.items()
    }


def test_layers_after_the_last_are_no_part_of_the_model() -> None:
    assert list(Anatomy.of(infos(6, 6, 6), num_hidden_layers=2).mlps) == [0, 1]


def test_a_missing_part_is_named() -> None:
    anatomy = Anatomy.of([info for info in infos(6) if "gate" not in info.name])

    assert anatomy.mlps[0].missing() == ["gate"]


def test_the_same_tensor_twice_is_one_tensor() -> None:
    assert Anatomy.of(infos(6) + infos(6)).widths() == {0: 6}


def test_a_tensor_is_said_to_be_what_it_is() -> None:
    info = TensorInfo(DOWN, "F32", (4, 6))

    assert isinstance(Anatomy().observe(info), TensorRole)


def test_two_tensors_for_one_part_are_refused() -> None:
    tensors = infos(6) + infos(6, prefix="model.language_model")

    assert refusal(lambda: Anatomy.of(tensors), CheckpointError) == (
        "model.layers.0.mlp.gate_proj.weight and model.language_model.layers.0.mlp.gate_proj.weight"
        " are both the gate part of one MLP"
    )


@pytest.mark.parametrize("shape", [(), (6,), (4, 6, 1)])
def test_what_is_no_matrix_is_refused(shape: tuple[int, ...]) -> None:
    assert refusal(lambda: Anatomy.of([TensorInfo(DOWN, "F32", shape)]), CheckpointError) == (
        f"not the shapes of a gated MLP: {DOWN} {list(shape)}"
    )


def test_shapes_that_do_not_fit_each_other_are_refused() -> None:
    tensors = [TensorInfo(UP, "F32", (6, 4)), TensorInfo(DOWN, "F32", (6, 4))]

    assert refusal(lambda: Anatomy.of(tensors), CheckpointError) == (
        f"not the shapes of a gated MLP: {UP} [6, 4], {DOWN} [6, 4]"
    )


def test_packed_shapes_are_not_judged() -> None:
    tensors = [TensorInfo(UP, "U8", (12, 1)), TensorInfo(DOWN, "F32", (4, 6))]

    assert Anatomy.of(tensors).widths() == {0: 6}


def test_the_router_of_a_multi_token_prediction_head_is_no_layers() -> None:
    anatomy = Anatomy(num_hidden_layers=1)
    for layer in (0, 1):
        anatomy.observe(TensorInfo(f"model.layers.{layer}.mlp.gate.weight", "BF16", (4, 8)))
        anatomy.observe(TensorInfo(f"model.layers.{layer}.mlp.gate.e_score_correction_bias", "F32", (4,)))
    assert list(anatomy.routers) == [0]
