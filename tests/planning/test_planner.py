# SPDX-License-Identifier: Apache-2.0
"""Plans: from patches to edits in checkpoint coordinates, as pure data."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import SOURCE, patches_of, refusal, scale, zero
from tests.folders import mlp_tensors
from vllm_surgery.errors import MismatchError
from vllm_surgery.model.config import ModelFacts
from vllm_surgery.model.quantization import METHODS, Scheme
from vllm_surgery.model.tensor_info import TensorInfo
from vllm_surgery.patch.patch_set import PatchSet
from vllm_surgery.planning.planner import Plan, Planner, TensorEdit, plan

WIDTHS = (6, 12)
FACTS = ModelFacts(num_hidden_layers=2)
NEGATE = {"op": "negate", "neurons": {"1": [7]}}


def infos(*widths: int, dtype: str = "F32", prefix: str = "model", hidden: int = 4) -> list[TensorInfo]:
    return [tensor.info(name) for name, tensor in mlp_tensors(widths, hidden, dtype, prefix).items()]


def down(layer: int, prefix: str = "model") -> str:
    return f"{prefix}.layers.{layer}.mlp.down_proj.weight"


def plan_of(*edits: object, tensors: list[TensorInfo] | None = None, facts: ModelFacts = FACTS) -> Plan:
    return plan(patches_of(*edits), facts, infos(*WIDTHS) if tensors is None else tensors)


# What a plan says


def test_a_neurons_gain_goes_on_its_column_of_the_down_projection() -> None:
    (edit,) = plan_of(NEGATE).edits

    assert edit == TensorEdit(down(1), "F32", (4, 12), axis=1, indices=(7,), gains=(-1.0,))


def test_indices_ascend_and_each_has_its_gain() -> None:
    (edit,) = plan_of(scale(3, {"0": [5, "0-1"]}), zero({"0": [3]})).edits

    assert (edit.indices, edit.gains) == ((0, 1, 3, 5), (3.0, 3.0, 0.0, 3.0))


def test_edits_stand_in_the_order_of_their_tensors_names() -> None:
    found = plan_of(zero({"10": [0], "9": [0], "1": [0]}), tensors=infos(*[2] * 11), facts=ModelFacts())

    assert [edit.tensor for edit in found.edits] == sorted(down(layer) for layer in (1, 9, 10))


def test_all_is_as_wide_as_the_layer() -> None:
    first, second = plan_of(zero({"0": "all", "1": "all"})).edits

    assert (first.indices, second.indices) == (tuple(range(6)), tuple(range(12)))


def test_units_are_counted_over_all_files() -> None:
    both = PatchSet(patches_of(zero({"0": ["0-3"]})).members + patches_of(zero({"1": "all"}), name="b").members)

    assert plan(both, FACTS, infos(*WIDTHS)).units == 4 + 12


def test_a_plan_has_the_id_of_its_patches() -> None:
    assert plan_of(NEGATE).id == patches_of(NEGATE).id


def test_no_patch_is_an_empty_plan() -> None:
    assert plan(PatchSet(), FACTS, infos(*WIDTHS)) == Plan("none", (), 0)


def test_a_plan_is_pure_data() -> None:
    found = plan_of(NEGATE, zero({"0": "all"}))

    assert json.loads(json.dumps(dataclasses.asdict(found)))["units"] == found.units


@given(st.permutations(infos(*WIDTHS)))
def test_the_order_of_tensors_does_not_matter(tensors: list[TensorInfo]) -> None:
    edits = (NEGATE, zero({"0": "all"}), scale(0.5, {"1": ["0-6"]}))

    assert plan_of(*edits, tensors=tensors) == plan_of(*edits)


@given(st.permutations([NEGATE, zero({"0": [1], "1": [2]}), scale(0.5, {"1": ["8-11", 0], "0": [5]})]))
def test_the_order_of_edits_does_not_matter(edits: list[dict[str, Any]]) -> None:
    assert plan_of(*edits) == plan_of(*sorted(edits, key=str))


@pytest.mark.parametrize("prefix", ["model", "model.language_model", "language_model.model"])
def test_a_multimodal_models_towers_are_never_touched(prefix: str) -> None:
    towers = [
        info
        for root in ("model.visual", "vision_tower.vision_model.encoder", "model.audio_tower", "mtp")
        for info in infos(*WIDTHS, prefix=root)
    ]

    found = plan_of(zero({"0": "all", "1": "all"}), tensors=[*towers, *infos(*WIDTHS, prefix=prefix)])

    assert [edit.tensor for edit in found.edits] == [down(0, prefix), down(1, prefix)]


def test_layers_after_the_last_are_left_alone() -> None:
    found = plan_of(zero({"1": "all"}), tensors=infos(6, 12, 99))

    assert [edit.tensor for edit in found.edits] == [down(1)]


def test_1100_neurons_over_many_layers() -> None:
    layers = {str(layer): [*range(0, 100, 2), "101-105"] for layer in range(20)}

    found = plan_of(zero(layers), tensors=infos(*[128] * 24, hidden=2), facts=ModelFacts(num_hidden_layers=24))

    assert (found.units, len(found.edits)) == (1100, 20)


def test_a_planner_gives_each_edit_as_its_tensor_comes_by() -> None:
    planner = Planner(patches_of(NEGATE), FACTS)

    edits = {info.name: planner.observe(info)[1] for info in infos(*WIDTHS)}

    assert {name: edit for name, edit in edits.items() if edit} == {
        edit.tensor: edit for edit in planner.finish().edits
    }


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_plain_number_formats_hold_every_op(dtype: str) -> None:
    (edit,) = plan_of(NEGATE, zero({"1": [1]}), scale(0.3, {"1": [2]}), tensors=infos(*WIDTHS, dtype=dtype)).edits

    assert edit.dtype == dtype


# Refusals


@pytest.mark.parametrize("last", [5, "0-5", "5-5"])
def test_the_last_unit_of_a_layer_is_in_range(last: object) -> None:
    assert plan_of(zero({"0": [last]})).edits[0].indices[-1] == 5


@pytest.mark.parametrize(
    ("selection", "place", "reason"),
    [
        ({"0": [6]}, "neurons.0", "index 6 is out of range: layer 0 has 6 neurons"),
        ({"0": ["0-6"]}, "neurons.0", "index 6 is out of range: layer 0 has 6 neurons"),
        ({"0": [1], "1": [0, 12]}, "neurons.1", "index 12 is out of range: layer 1 has 12 neurons"),
        ({"0": [1048575]}, "neurons.0", "index 1048575 is out of range: layer 0 has 6 neurons"),
        ({"2": [0]}, "neurons.2", "layer 2 is out of range: the model has 2 layers"),
        ({"9999": "all"}, "neurons.9999", "layer 9999 is out of range: the model has 2 layers"),
    ],
)
def test_what_is_out_of_range_is_refused(selection: dict[str, Any], place: str, reason: str) -> None:
    text = refusal(
        lambda: plan_of(zero({"1": [5]}) if "1" not in selection else NEGATE, zero(selection)), MismatchError
    )

    assert text == f"{SOURCE}: edits[1].{place}: {reason}"


@pytest.mark.parametrize("part", ["gate", "up", "down"])
def test_a_layer_without_one_of_the_parts_is_refused(part: str) -> None:
    tensors = [info for info in infos(*WIDTHS) if info.name != f"model.layers.1.mlp.{part}_proj.weight"]

    assert refusal(lambda: plan_of(NEGATE, tensors=tensors), MismatchError) == (
        f"{SOURCE}: edits[0].neurons.1: touches no tensor: layer 1 has no gated MLP in a naming that is known"
        f" (no {part} projection)"
    )


def test_a_layer_without_an_mlp_is_refused() -> None:
    assert refusal(lambda: plan_of(NEGATE, tensors=infos(6)), MismatchError) == (
        f"{SOURCE}: edits[0].neurons.1: touches no tensor: layer 1 has no gated MLP in a naming that is known"
        " (no gate, up, down projection)"
    )


def test_another_files_missing_layer_names_that_file() -> None:
    both = PatchSet(patches_of(zero({"0": [1]}), source="a").members + patches_of(NEGATE, source="b").members)

    assert refusal(lambda: plan(both, FACTS, infos(6)), MismatchError).startswith("b: edits[0].neurons.1: ")


@pytest.mark.parametrize(
    ("op", "experts", "reason"),
    [
        ("zero", None, "touches no tensor: the model has no routed experts"),
        ("zero", 8, "touches no tensor: the model has no routed experts in a naming that is known"),
        ("mask", None, "touches no tensor: the model has no routed experts"),
        ("mask", 8, "touches no tensor: layer 0 has no router in a naming that is known"),
    ],
)
def test_experts_that_no_tensor_holds_are_refused(op: str, experts: int | None, reason: str) -> None:
    edit = {"op": op, "experts": {"0": [1]}}

    assert refusal(lambda: plan_of(edit, facts=ModelFacts(num_experts=experts)), MismatchError) == (
        f"{SOURCE}: edits[0].experts.0: {reason}"
    )


@pytest.mark.parametrize(
    ("dtype", "method", "words"),
    [
        *((dtype, None, "") for dtype in ("F8_E4M3", "F8_E5M2", "I8", "U8", "I32")),
        ("I8", "fp8", " (fp8)"),
        ("U8", "bitsandbytes", " (bitsandbytes)"),
        ("F8_E4M3", "gptq", " (gptq)"),
    ],
)
def test_a_format_that_cannot_hold_the_edit_is_refused(dtype: str, method: str | None, words: str) -> None:
    facts = ModelFacts(scheme=Scheme.of({"quantization_config": {"quant_method": method}} if method else {}))

    assert refusal(lambda: plan_of(NEGATE, tensors=infos(*WIDTHS, dtype=dtype), facts=facts), MismatchError) == (
        f"{SOURCE}: edits[0].neurons.1: {down(1)} is stored as {dtype}{words}, in which this version can hold no op"
        f" exactly; it edits BF16, F16, F32, F64 and {METHODS}"
    )


def test_packed_weights_in_an_unknown_naming_are_refused() -> None:
    packed = [TensorInfo(info.name.replace("weight", "W_q"), "I32", (6, 1)) for info in infos(*WIDTHS)]
    facts = ModelFacts(scheme=Scheme("hqq", None))

    text = refusal(lambda: plan_of(NEGATE, tensors=packed, facts=facts), MismatchError)

    assert text.startswith(f"{SOURCE}: edits[0].neurons.1: touches no tensor: layer 1 has no gated MLP")
    assert text.endswith("; the checkpoint is quantised (hqq)")


def test_packed_weights_in_other_layers_do_no_harm() -> None:
    tensors = [TensorInfo(down(0), "F8_E4M3", (4, 6)), *infos(*WIDTHS)[0:2], *infos(*WIDTHS)[3:]]

    assert [edit.tensor for edit in plan_of(NEGATE, tensors=tensors).edits] == [down(1)]


def test_what_the_config_alone_shows_is_refused_before_any_tensor() -> None:
    assert "out of range" in refusal(lambda: Planner(patches_of(zero({"5": [1]})), FACTS), MismatchError)
