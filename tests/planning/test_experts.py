# SPDX-License-Identifier: Apache-2.0
"""Routed experts, from patch to plan to checkpoint and back, in every layout in which families store them."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.examples import SOURCE, patches_of, refusal, zero
from tests.folders import LAYOUTS, expert_tensors, mlp_tensors, write_experts, write_folder
from tests.models import patch_of
from vllm_surgery import MismatchError, ModelFolder, Patch, PatchSet, Plan, TensorEdit
from vllm_surgery.cli import main
from vllm_surgery.errors import CheckpointError
from vllm_surgery.model.anatomy import Anatomy
from vllm_surgery.model.config import ModelFacts
from vllm_surgery.model.conventions import classify_tensor
from vllm_surgery.model.tensor_info import TensorInfo
from vllm_surgery.offline.bake import bake
from vllm_surgery.offline.diff import Diff, Unexplained, diff
from vllm_surgery.patch.patch_set import SourcedPatch
from vllm_surgery.patch.units import Unit
from vllm_surgery.planning.check import check_patches
from vllm_surgery.planning.guard import guard_of
from vllm_surgery.planning.inventory import describe_model
from vllm_surgery.planning.planner import plan
from vllm_surgery.planning.seal import seal_of_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    Gains = Mapping[tuple[int, int], float]

FACTS = ModelFacts(num_hidden_layers=2, num_experts=4)
CARRIERS = {
    "own": ["mlp.experts.2.down_proj.weight"],
    "mixtral": ["block_sparse_moe.experts.2.w2.weight"],
    "shared": ["mlp.experts.down_proj"],
    "shared with biases": ["mlp.experts.down_proj", "mlp.experts.down_proj_bias"],
    "scaled": ["router.per_expert_scale"],
}
"""The tensors of a layer on which the gain of expert 2 goes."""


def infos(layout: str, **options: Any) -> list[TensorInfo]:
    return [tensor.info(name) for name, tensor in expert_tensors(layout, **options).items()]


def plan_of(layout: str, *edits: object, facts: ModelFacts = FACTS, tensors: list[TensorInfo] | None = None) -> Plan:
    return plan(patches_of(*edits), facts, infos(layout) if tensors is None else tensors)


def sourced(gains: Gains, neurons: Gains | None = None, **more: Any) -> PatchSet:
    return PatchSet((SourcedPatch("p", Patch.from_data(patch_of(neurons or {}, experts=gains, **more))),))


def change(folder: Path, **tensors: Callable[[torch.Tensor], object]) -> Path:
    """Changes tensors of a folder with one file in place; their names are those of layer 1."""
    file = folder / "model.safetensors"
    content = load_file(file)
    for name, edit in tensors.items():
        edit(content[f"model.layers.1.{name}"])
    save_file(content, file, metadata={"format": "pt"})
    return folder


# What a plan says


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_gain_goes_on_what_is_linear_in_the_experts_output(layout: str) -> None:
    found = plan_of(layout, {"op": "negate", "experts": {"1": [2]}})

    assert [edit.tensor for edit in found.edits] == [f"model.layers.1.{name}" for name in CARRIERS[layout]]
    assert {edit.gains for edit in found.edits} == {(-1.0,)}
    assert found.units == 1


@pytest.mark.parametrize("layout", ["own", "mixtral"])
def test_an_experts_own_tensor_is_one_slice(layout: str) -> None:
    (edit,) = plan_of(layout, {"op": "negate", "experts": {"1": [2]}}).edits

    assert edit == TensorEdit(f"model.layers.1.{CARRIERS[layout][0]}", "F32", (8, 6), None, (0,), (-1.0,))


@pytest.mark.parametrize("layout", ["shared", "shared with biases", "scaled"])
def test_in_a_shared_tensor_experts_are_slices_of_the_first_axis(layout: str) -> None:
    edits = plan_of(layout, {"op": "negate", "experts": {"1": [2]}}, zero({"1": [0]}, "experts")).edits

    assert [(edit.axis, edit.indices, edit.gains) for edit in edits] == [(0, (0, 2), (0.0, -1.0))] * len(edits)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_is_every_expert_of_the_layer(layout: str) -> None:
    found = plan_of(layout, zero({"0": "all", "1": ["1-2"]}, "experts"))

    slices = sum(len(edit.indices) for edit in found.edits)
    assert (found.units, slices) == (6, 6 * len(CARRIERS[layout]))


@pytest.mark.parametrize("layout", LAYOUTS)
@given(data=st.data())
def test_the_order_of_tensors_does_not_matter(layout: str, data: st.DataObject) -> None:
    edits = (zero({"0": "all"}, "experts"), {"op": "scale", "factor": 0.5, "experts": {"1": [0, 3]}})

    shuffled = data.draw(st.permutations(infos(layout)))

    assert plan_of(layout, *edits, tensors=shuffled) == plan_of(layout, *edits)


def test_neurons_of_a_dense_mlp_stand_beside_experts() -> None:
    tensors = [*infos("scaled"), *(tensor.info(name) for name, tensor in mlp_tensors((6, 6), 8).items())]

    found = plan_of("scaled", zero({"1": [2]}, "experts"), zero({"1": [3]}), tensors=tensors)

    assert [edit.tensor for edit in found.edits] == [
        "model.layers.1.mlp.down_proj.weight",
        "model.layers.1.router.per_expert_scale",
    ]
    assert found.units == 2


def test_shared_experts_and_routers_are_no_routed_experts() -> None:
    names = ["shared_expert_gate.weight", "gate.weight", "gate.e_score_correction_bias", "router.weight", "router.bias"]
    shared = ["shared_expert.down_proj.weight", "shared_experts.down_proj.weight"]

    assert [classify_tensor(f"model.layers.0.mlp.{name}") for name in names] == [None] * len(names)
    assert {role.kind for name in shared if (role := classify_tensor(f"model.layers.0.mlp.{name}"))} == {"shared"}


@pytest.mark.parametrize("name", ["experts.down_proj.weight", "experts.3.down_proj_blocks", "experts.3.down_proj.W_q", "experts.03.down_proj.weight"])  # fmt: skip
def test_experts_in_other_namings_are_no_part(name: str) -> None:
    assert classify_tensor(f"model.layers.0.mlp.{name}") is None


@pytest.mark.parametrize("layout", LAYOUTS)
def test_experts_are_counted(layout: str) -> None:
    assert Anatomy.of(infos(layout, experts=5)).expert_counts() == {0: 5, 1: 5}


def test_quantised_experts_can_have_a_scale_that_is_not() -> None:
    packed = [
        TensorInfo(info.name, "F8_E4M3", info.shape) if "experts." in info.name else info for info in infos("scaled")
    ]

    assert plan_of("scaled", zero({"1": [2]}, "experts"), tensors=packed).units == 1


# Refusals


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("facts", [FACTS, ModelFacts()], ids=["config says", "tensors say"])
def test_an_expert_beyond_the_last_is_refused(layout: str, facts: ModelFacts) -> None:
    text = refusal(lambda: plan_of(layout, zero({"1": ["3-4"]}, "experts"), facts=facts), MismatchError)

    assert text == f"{SOURCE}: edits[0].experts.1: index 4 is out of range: layer 1 has 4 experts"


def test_a_layer_without_experts_is_refused() -> None:
    text = refusal(lambda: plan_of("own", zero({"0": [1]}, "experts"), tensors=infos("own", layers=[1])), MismatchError)

    assert text == f"{SOURCE}: edits[0].experts.0: touches no tensor: layer 0 has no routed experts"


def test_neurons_where_there_are_experts_alone_are_refused() -> None:
    text = refusal(lambda: plan_of("own", zero({"0": [1]})), MismatchError)

    assert text.endswith(
        "touches no tensor: layer 0 has no gated MLP in a naming that is known (no gate, up, down projection)"
    )


@pytest.mark.parametrize("layout", ["own", "shared", "scaled"])
def test_a_missing_carrier_is_refused(layout: str) -> None:
    gone = f"model.layers.1.{CARRIERS[layout][0]}"
    tensors = [info for info in infos(layout) if info.name != gone]
    part_name = "scale" if layout == "scaled" else "down"

    assert refusal(lambda: plan_of(layout, zero({"1": [2]}, "experts"), tensors=tensors), MismatchError) == (
        f"{SOURCE}: edits[0].experts.1: touches no tensor: expert 2 of layer 1 has no {part_name} tensor"
    )


@pytest.mark.parametrize("layout", ["own", "shared"])
def test_a_format_that_cannot_hold_the_edit_is_refused(layout: str) -> None:
    text = refusal(lambda: plan_of(layout, zero({"1": [2]}, "experts"), tensors=infos(layout, dtype="F8_E4M3")))

    assert f"{CARRIERS[layout][0]} is stored as F8_E4M3, in which this version can hold no op exactly" in text


def test_packed_experts_of_no_edit_do_no_harm() -> None:
    tensors = [TensorInfo(info.name, "I8", info.shape) if ".experts.3." in info.name else info for info in infos("own")]

    assert plan_of("own", zero({"1": [2]}, "experts"), tensors=tensors).units == 1


@pytest.mark.parametrize(
    ("layout", "name", "shape"),
    [
        ("own", "mlp.experts.1.down_proj.weight", (6, 8)),
        ("own", "mlp.experts.1.down_proj.weight", (8, 6, 1)),
        ("shared", "mlp.experts.down_proj", (3, 6, 8)),
        ("scaled", "router.per_expert_scale", (5,)),
        ("scaled", "router.per_expert_scale", ()),
    ],
)
def test_shapes_that_do_not_fit_are_refused(layout: str, name: str, shape: tuple[int, ...]) -> None:
    name = f"model.layers.0.{name}"
    tensors = [TensorInfo(info.name, "F32", shape if info.name == name else info.shape) for info in infos(layout)]

    text = refusal(lambda: Anatomy.of(tensors), CheckpointError)

    assert text.startswith("not the shapes of routed experts: ")
    assert f"{name} {list(shape)}" in text


def test_one_layer_in_two_namings_is_refused() -> None:
    text = refusal(lambda: Anatomy.of([*infos("own"), *infos("shared")]), CheckpointError)

    assert text.endswith("name the experts of one layer in two ways")


def test_a_guard_on_the_number_of_experts_is_held(tmp_path: Path) -> None:
    folder = ModelFolder(write_experts(tmp_path, "own"))

    text = refusal(lambda: check_patches(sourced({(1, 2): 0.0}, model={"num_experts": 8}), folder), MismatchError)

    assert text == "p: model.num_experts: the patch is for 8, this model has 4"
    assert guard_of(folder)["num_experts"] == 4


# Seals


def seals(folder: Path) -> dict[str, str]:
    patch = folder / "patch.yaml"
    patch.write_text("{version: 1, name: x, edits: [{op: zero, experts: {1: all}}]}")
    assert main(["seal", str(patch), "--model", str(folder)]) == 0
    return Patch.parse(patch.read_bytes()).seal


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_expert_has_a_seal_of_its_own_that_holds_in_any_layout(layout: str, tmp_path: Path) -> None:
    found = seals(write_experts(tmp_path / "a", layout))

    assert list(found) == [f"experts/1/{index}" for index in range(4)]
    assert len(set(found.values())) == 4
    sharded = ModelFolder(write_experts(tmp_path / "b", layout, shards=3))
    assert check_patches(sourced({(1, index): 0.0 for index in range(4)}, seal=found), sharded).units == 4


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_part_of_an_expert_matters_and_nothing_else(layout: str, tmp_path: Path) -> None:
    before = seals(write_experts(tmp_path / "before", layout))
    for number, name in enumerate(expert_tensors(layout, layers=[1])):
        part = name.removeprefix("model.layers.1.")
        shared = layout in {"shared", "shared with biases", "scaled"}
        folder = write_experts(tmp_path / str(number), layout)
        after = seals(change(folder, **{part: lambda tensor, shared=shared: (tensor[2] if shared else tensor).neg_()}))

        changed = [key for key in before if before[key] != after[key]]

        role = classify_tensor(name)
        owner = None if role is None else 2 if role.expert is None else role.expert
        assert changed == ([] if owner is None else [f"experts/1/{owner}"])


def test_gate_above_up_in_one_tensor_is_sealed_like_two_tensors(tmp_path: Path) -> None:
    shared = expert_tensors("scaled", layers=[1])
    del shared["model.layers.1.router.per_expert_scale"]
    numbers = {name.rsplit(".")[-1]: tensor.data for name, tensor in shared.items() if ".experts." in name}
    own = expert_tensors("own", layers=[1])
    size = len(own["model.layers.1.mlp.experts.2.gate_proj.weight"].data)
    for number, part in enumerate(("gate_proj", "up_proj", "down_proj")):
        data = (
            numbers["down_proj"][2 * size :] if part == "down_proj" else numbers["gate_up_proj"][(4 + number) * size :]
        )
        name = f"model.layers.1.mlp.experts.2.{part}.weight"
        own[name] = dataclasses.replace(own[name], data=data[:size])
    folders = [write_folder(tmp_path / str(number), tensors, {}) for number, tensors in enumerate((shared, own))]

    first, second = (seal_of_folder(ModelFolder(folder), Unit("experts", 1, 2)) for folder in folders)

    assert first == second


def test_a_broken_seal_names_the_expert(tmp_path: Path) -> None:
    found = seals(write_experts(tmp_path / "a", "own"))
    other = ModelFolder(write_experts(tmp_path / "b", "own", seed=1))

    text = refusal(
        lambda: check_patches(sourced({(1, index): 0.0 for index in range(4)}, seal=found), other), MismatchError
    )

    assert text.startswith("p: seal.experts/1/0: broken: the model's weights are not the sealed ones")


# Checkpoints


gains = st.sampled_from([-1.0, 0.0, 0.5, -0.8, 3.0, 5.0, 0.25, -2.5])
units = st.tuples(st.integers(0, 1), st.integers(0, 3))


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=40, deadline=None)
@given(wanted=st.dictionaries(units, gains, min_size=1), dtype=st.sampled_from(["F32", "BF16", "F16", "F64"]))
def test_diff_of_a_bake_is_the_patch(layout: str, wanted: Gains, dtype: str) -> None:
    neurons = {(1, 5): -1.0} if layout == "scaled" else {}
    with tempfile.TemporaryDirectory() as work:
        base = ModelFolder(write_experts(Path(work) / "base", layout, dtype=dtype, hidden=32))
        patches = sourced(wanted, neurons, model=guard_of(base))
        bake(patches, base, Path(work) / "baked")
        found = diff(base, ModelFolder(Path(work) / "baked"))

        assert (found.unexplained, found.notes) == ([], [])
        again = found.patch("test", base)

    assert again is not None
    assert again.digest == patches.members[0].patch.digest


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_the_carriers_are_changed(layout: str, tmp_path: Path) -> None:
    base = write_experts(tmp_path / "base", layout, dtype="BF16")
    bake(sourced({(1, 2): -0.75}), ModelFolder(base), tmp_path / "baked")

    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "baked"))
    for name in CARRIERS[layout]:
        tensor = before[f"model.layers.1.{name}"]
        expert = tensor if layout in {"own", "mixtral"} else tensor[2]
        expert.copy_((expert.float() * -0.75).bfloat16())
    assert {name: tensor.tolist() for name, tensor in before.items()} == {
        name: tensor.tolist() for name, tensor in after.items()
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_negating_twice_gives_the_base_back(layout: str, tmp_path: Path) -> None:
    base, twice = write_experts(tmp_path / "base", layout, dtype="BF16"), sourced({(0, 0): -1.0, (1, 2): -1.0})
    bake(twice, ModelFolder(base), tmp_path / "once")
    bake(twice, ModelFolder(tmp_path / "once"), tmp_path / "twice")

    first, second, third = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("base", "once", "twice"))
    assert second != first
    assert third == first


def test_gains_where_a_patch_does_not_put_them_are_found(tmp_path: Path) -> None:
    def halve(tensor: torch.Tensor) -> None:
        tensor[2] *= 0.5

    edited = change(write_experts(tmp_path / "edited", "scaled"), **{"experts.down_proj": halve})
    found = diff(ModelFolder(write_experts(tmp_path / "base", "scaled")), ModelFolder(edited))

    assert (found.experts, found.unexplained) == ({(1, 2): 0.5}, [])
    assert found.notes == [
        "1 gain(s) stand on down projection of experts; from the per-expert scale, where a patch puts them, "
        "they give the same outputs"
    ]


def test_a_gate_that_is_turned_round_is_no_gain(tmp_path: Path) -> None:
    edited = change(write_experts(tmp_path / "edited", "own"), **{"mlp.experts.1.gate_proj.weight": lambda t: t.neg_()})
    found = diff(ModelFolder(write_experts(tmp_path / "base", "own")), ModelFolder(edited))

    assert found.experts == {}
    assert found.unexplained == [
        Unexplained("model.layers.1.mlp.experts.1.gate_proj.weight", "whole changed by more than a gain", 48)
    ]


def without(tmp_path: Path, name: str) -> Diff:
    """What is found where an expert's weights, or its bias, were halved alone."""
    layout = "shared with biases"
    edited = change(write_experts(tmp_path / "edited", layout), **{name: lambda tensor: tensor[2].mul_(0.5)})
    return diff(ModelFolder(write_experts(tmp_path / "base", layout)), ModelFolder(edited))


def test_a_gain_of_a_bias_alone_is_no_gain(tmp_path: Path) -> None:
    found = without(tmp_path, "mlp.experts.down_proj_bias")

    assert (found.experts, found.expert_neurons) == ({}, {})
    (item,) = found.unexplained
    assert item.tensor == "model.layers.1.mlp.experts.down_proj_bias"
    assert item.reason == "slice 2 changed by more than a gain"


def test_a_gain_without_its_bias_is_one_of_every_neuron(tmp_path: Path) -> None:
    found = without(tmp_path, "mlp.experts.down_proj")

    assert (found.experts, found.unexplained) == ({}, [])
    assert found.expert_neurons == {(1, 2, neuron): 0.5 for neuron in range(6)}


def test_where_gate_and_up_have_biases_no_change_of_them_is_a_gain(tmp_path: Path) -> None:
    layout = "shared with biases"
    edited = change(write_experts(tmp_path / "edited", layout), **{"mlp.experts.gate_up_proj": lambda t: t[2].zero_()})

    assert diff(ModelFolder(write_experts(tmp_path / "base", layout)), ModelFolder(edited)).experts == {}


# Said to people


def test_a_plan_names_experts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for layout, words in {"own": "expert 2: negated", "scaled": "experts: 2 negated"}.items():
        folder, patch = write_experts(tmp_path / layout, layout), tmp_path / "patch.yaml"
        patch.write_text(sourced({(1, 2): -1.0}).members[0].patch.to_yaml())
        assert main(["check", str(patch), "--model", str(folder)]) == 0
        first, line = capsys.readouterr().out.splitlines()[1:]
        assert first == f"plan for {folder}: 1 unit in 1 tensor"
        assert line.endswith(f"], {words}")


def test_a_long_plan_is_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, patch = write_experts(tmp_path / "model", "own", experts=60), tmp_path / "patch.yaml"
    patch.write_text("{version: 1, name: x, edits: [{op: zero, experts: {0: all, 1: all}}]}")
    assert main(["check", str(patch), "--model", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == f"plan for {folder}: 120 units in 120 tensors"
    assert lines[-1] == "  and 20 more tensors; --json names each"


def test_a_model_is_said_in_one_line(tmp_path: Path) -> None:
    folder = write_experts(tmp_path / "model", "scaled")
    assert describe_model(ModelFolder(folder)) == (
        f"{folder}: SomeMoeForCausalLM, 2 layers, 6 neurons in each of 2 dense MLPs, 12 neurons in all, "
        "4 routed experts in each of 2 layers"
    )


def test_what_diff_found_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, patch = write_experts(tmp_path / "base", "scaled"), tmp_path / "patch.yaml"
    bake(sourced({(1, 2): -1.0}, {(0, 1): 0.0}), ModelFolder(base), tmp_path / "baked")
    assert main(["diff", str(base), str(tmp_path / "baked"), "-o", str(patch)]) == 0
    assert capsys.readouterr().out.endswith(", 1 neuron and 1 expert\n")
