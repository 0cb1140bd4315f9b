# SPDX-License-Identifier: Apache-2.0
"""A plan is pure data in checkpoint coordinates, whatever order the tensors come in."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import SOURCE, patches_of, refusal, scale, zero
from tests.folders import config_of, mlp_tensors
from tests.models import patch_of
from vllm_surgery import MismatchError, Patch, PatchSet, Plan
from vllm_surgery.checkpoint import ModelFacts, TensorInfo
from vllm_surgery.plan import plan
from vllm_surgery.stack import SourcedPatch

if TYPE_CHECKING:
    import random

WIDTHS = (6, 8, 6)


def infos(widths: tuple[int, ...] = WIDTHS, prefix: str = "model", dtype: str = "F32") -> list[TensorInfo]:
    return [tensor.info(name) for name, tensor in mlp_tensors(widths, prefix=prefix, dtype=dtype).items()]


def facts(widths: tuple[int, ...] = WIDTHS, **more: object) -> ModelFacts:
    return ModelFacts.from_config(config_of(widths, **more))


def planned(*edits: dict[str, Any], tensors: list[TensorInfo] | None = None, **more: object) -> Plan:
    return plan(patches_of(*edits), facts(**more), infos() if tensors is None else tensors)


def test_a_neurons_gain_goes_on_its_column_of_the_down_projection() -> None:
    (edit,) = planned(scale(0.5, {"1": [7, 2]})).edits
    assert dataclasses.asdict(edit) == {
        "tensor": "model.layers.1.mlp.down_proj.weight",
        "dtype": "F32",
        "shape": (4, 8),
        "axis": 1,
        "indices": (2, 7),
        "gains": (0.5, 0.5),
    }


def test_gains_of_several_edits_meet_in_one_tensor() -> None:
    (edit,) = planned(scale(3, {"0": [5]}), zero({"0": ["1-2"]}), {"op": "negate", "neurons": {"0": [4]}}).edits
    assert dict(zip(edit.indices, edit.gains, strict=True)) == {1: 0.0, 2: 0.0, 4: -1.0, 5: 3.0}


def test_all_is_every_unit_of_the_layer() -> None:
    (edit,) = planned(zero({"1": "all"})).edits
    assert edit.indices == tuple(range(8))


def test_a_factor_is_rounded_to_float32() -> None:
    (edit,) = planned(scale(-0.8, {"0": [0]})).edits
    assert edit.gains == (-0.800000011920929,)


@given(st.randoms())
def test_the_order_of_the_tensors_doesnt_matter(shuffle: random.Random) -> None:
    tensors = infos()
    shuffle.shuffle(tensors)
    edits = (scale(0.5, {"1": [7, 2]}), zero({"0": [0], "2": [5]}))
    assert planned(*edits, tensors=tensors) == planned(*edits)


@pytest.mark.parametrize("prefix", ["model", "model.language_model", "language_model.model"])
def test_the_language_model_is_found_under_its_root(prefix: str) -> None:
    tower = infos(prefix="model.vision_tower") + infos(prefix="vision_tower.encoder")
    (edit,) = planned(zero({"1": [7]}), tensors=tower + infos(prefix=prefix)).edits
    assert edit.tensor == f"{prefix}.layers.1.mlp.down_proj.weight"


def test_layers_past_the_last_belong_to_no_model_that_answers() -> None:
    tensors = infos((*WIDTHS, 6))
    assert planned(zero({"2": [5]}), tensors=tensors).units == 1
    assert "layer 3 is out of range: the model has 3 layers" in refusal(
        lambda: planned(zero({"3": [0]}), tensors=tensors)
    )


def test_1100_neurons_over_many_layers() -> None:
    widths = (100,) * 30
    gains = {(index % 30, index // 30): -1.0 for index in range(1_100)}
    patches = PatchSet((SourcedPatch("p", Patch.from_data(patch_of(gains))),))
    made = plan(patches, facts(widths), infos(widths))
    assert (made.units, len(made.edits)) == (1_100, 30)
    assert {
        (n, i)
        for n, edit in enumerate(sorted(made.edits, key=lambda e: int(e.tensor.split(".")[2])))
        for i in edit.indices
    } == set(gains)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_last_unit_is_in_range_and_the_next_is_not(layer: int) -> None:
    width = WIDTHS[layer]
    assert planned(zero({str(layer): [width - 1]})).units == 1
    said = f"{SOURCE}: edits[0].neurons.{layer}: index {width} is out of range: layer {layer} has {width} neurons"
    assert refusal(lambda: planned(zero({str(layer): [width]})), MismatchError) == said


@pytest.mark.parametrize(
    ("edit", "more", "said"),
    [
        (zero({"9": [0]}), {}, "edits[0].neurons.9: layer 9 is out of range: the model has 3 layers"),
        (zero({"0": [0]}, "experts"), {}, "edits[0].experts.0: touches no tensor: the model has no routed experts"),
        (
            zero({"0": [0]}, "experts"),
            {"num_experts": 8},
            "edits[0].experts.0: touches no tensor: this version edits the neurons of dense MLPs, not yet experts",
        ),
    ],
)
def test_what_touches_no_tensor_is_refused(edit: dict[str, Any], more: dict[str, object], said: str) -> None:
    assert refusal(lambda: planned(edit, **more), MismatchError) == f"{SOURCE}: {said}"


@pytest.mark.parametrize(
    ("missing", "quantised", "said"),
    [
        ("down", None, "(no down projection)"),
        ("up", None, "(no up projection)"),
        ("down", "awq", "(no down projection); the checkpoint is quantised (awq)"),
    ],
)
def test_a_layer_without_a_whole_mlp_is_refused(missing: str, quantised: str | None, said: str) -> None:
    tensors = [info for info in infos() if not info.name.startswith(f"model.layers.1.mlp.{missing}")]
    more = {"quantization_config": {"quant_method": quantised}} if quantised else {}
    start = f"{SOURCE}: edits[0].neurons.1: touches no tensor: layer 1 has no gated MLP in a naming that is known "
    assert refusal(lambda: planned(zero({"1": [0]}), tensors=tensors, **more), MismatchError) == start + said


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "I8", "U8", "I32"])
def test_a_format_that_cant_hold_the_edit_is_refused(dtype: str) -> None:
    said = (
        f"{SOURCE}: edits[0].neurons.1: model.layers.1.mlp.down_proj.weight is stored as {dtype} (fp8), in which this "
        "version can hold no op exactly; it edits BF16, F16, F32, F64"
    )
    tensors = [dataclasses.replace(info, dtype=dtype) for info in infos()]
    more = {"quantization_config": {"quant_method": "fp8"}}
    assert refusal(lambda: planned(zero({"1": [0]}), tensors=tensors, **more), MismatchError) == said


def test_other_layers_may_be_stored_in_any_format() -> None:
    tensors = infos()[:3] + [dataclasses.replace(info, dtype="F8_E4M3") for info in infos()[3:]]
    assert planned(zero({"0": [0]}), tensors=tensors).units == 1
