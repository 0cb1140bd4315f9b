# SPDX-License-Identifier: Apache-2.0
"""Neurons inside one routed expert, from patch to plan to checkpoint and back, in every layout in which families store them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.examples import patch_data, patches_of, refusal, zero
from tests.folders import LAYOUTS, config_of, expert_tensors, mlp_tensors, write_experts, write_folder
from vllm_surgery import MismatchError, ModelFolder, Patch, PatchError, TensorEdit
from vllm_surgery.cli import main
from vllm_surgery.errors import CheckpointError
from vllm_surgery.evaluation.shams import make_shams
from vllm_surgery.model.config import ModelFacts
from vllm_surgery.offline.bake import bake
from vllm_surgery.offline.diff import Diff, Unexplained, diff
from vllm_surgery.offline.export_lora import export_lora
from vllm_surgery.patch.describe import describe
from vllm_surgery.patch.patch_set import PatchSet, SourcedPatch
from vllm_surgery.patch.units import Unit
from vllm_surgery.planning.check import check_patches, seal_patch
from vllm_surgery.planning.inventory import take_inventory
from vllm_surgery.planning.planner import Plan, plan
from vllm_surgery.planning.seal import seal_of_folder

if TYPE_CHECKING:
    from pathlib import Path

WIDTH, HIDDEN = 6, 8  # Of `write_experts`.
DOWN = {
    "own": "mlp.experts.2.down_proj.weight",
    "mixtral": "block_sparse_moe.experts.2.w2.weight",
    "shared": "mlp.experts.down_proj",
    "shared with biases": "mlp.experts.down_proj",
    "scaled": "experts.down_proj",
}
"""The tensor of a layer in which expert 2 has its down projection."""
OWN, SHARED = ("own", "mixtral"), ("shared", "shared with biases", "scaled")
FIRST_AXIS = ("shared", "shared with biases")
"""The layouts whose experts' matrices count neurons along their first axis."""
EDITS = (
    {"op": "scale", "factor": 0.7, "expert_neurons": {"1": {"2": [0, 5]}}},
    {"op": "zero", "expert_neurons": {"1": {"2": [3]}, "0": {"0": ["1-2"]}}},
    {"op": "negate", "expert_neurons": {"1": {"3": [1]}}},
)


def negate(*neurons: int, layer: int = 1, expert: int = 2) -> dict[str, Any]:
    return {"op": "negate", "expert_neurons": {str(layer): {str(expert): list(neurons)}}}


def model_of(folder: Path, layout: str) -> ModelFolder:
    return ModelFolder(write_experts(folder, layout))


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def matrix(tensors: dict[str, torch.Tensor], layout: str) -> torch.Tensor:
    """What the neurons of expert 2 of layer 1 write, a row each; a view."""
    tensor = tensors[f"model.layers.1.{DOWN[layout]}"]
    own = tensor if layout in OWN else tensor[2]
    return own if layout in FIRST_AXIS else own.t()


def changed(base: Path, edited: Path) -> Diff:
    return diff(ModelFolder(base), ModelFolder(edited))


def plan_of(tensors: dict[str, Any], *edits: object, **facts: Any) -> Plan:
    known = ModelFacts(**{"num_hidden_layers": 2, "num_experts": 4, "hidden_size": HIDDEN, **facts})
    return plan(patches_of(*edits), known, [tensor.info(name) for name, tensor in tensors.items()])


# Plan, bake, seal and diff


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_gain_goes_on_what_the_neuron_writes_and_nowhere_else(tmp_path: Path, layout: str) -> None:
    model = model_of(tmp_path / "model", layout)
    expected = stored(model.path)
    matrix(expected, layout)[5] *= -1
    matrix(expected, layout)[1] *= 0.7

    done = bake(
        patches_of(negate(5), {"op": "scale", "factor": 0.7, "expert_neurons": {"1": {"2": [1]}}}),
        model,
        tmp_path / "baked",
    )

    assert (done.units, done.tensors) == (2, 1)
    found = stored(tmp_path / "baked")
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_sealed_and_baked_is_found_again(tmp_path: Path, layout: str) -> None:
    model = model_of(tmp_path / "model", layout)
    sealed = PatchSet((SourcedPatch("p", seal_patch(patches_of(*EDITS).members[0], model)),))

    done = bake(sealed, model, tmp_path / "baked")
    found = changed(model.path, tmp_path / "baked")

    assert done.units == 6
    assert (found.gains, found.experts, found.unexplained, found.notes) == ({}, {}, [], [])
    again = found.patch("small", model)
    assert again is not None
    assert again.digest == sealed.members[0].patch.digest


def test_an_experts_own_tensor_is_edited_as_a_dense_mlps() -> None:
    (edit,) = plan_of(expert_tensors("own"), negate(5, 1)).edits
    assert edit == TensorEdit(f"model.layers.1.{DOWN['own']}", "F32", (8, 6), 1, (1, 5), (-1.0, -1.0))


def test_a_shared_tensor_has_whole_experts_and_neurons_inside_others_in_one_edit() -> None:
    (edit,) = plan_of(expert_tensors("shared"), negate(5), zero({"1": [0]}, "experts")).edits
    inner = TensorEdit(edit.tensor, "F32", (6, 8), 0, (5,), (-1.0,))
    assert (edit.axis, edit.indices, edit.gains, edit.inside) == (0, (0,), (0.0,), ((2, inner),))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_is_every_neuron_of_the_expert(layout: str) -> None:
    found = plan_of(expert_tensors(layout), zero({"1": {"2": "all", "0": [1]}}, "expert_neurons"))
    assert found.units == WIDTH + 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_order_of_tensors_does_not_matter(layout: str) -> None:
    tensors = expert_tensors(layout)
    assert plan_of(dict(reversed(tensors.items())), *EDITS) == plan_of(tensors, *EDITS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_seal_is_broken_by_its_neuron_and_by_no_other_experts(tmp_path: Path, layout: str) -> None:
    model = model_of(tmp_path / "model", layout)
    unit = Unit("expert_neurons", 1, 5, 2)
    before = seal_of_folder(model, unit)
    other = bake(patches_of(negate(5, expert=1), negate(4)), model, tmp_path / "other").folder
    same = bake(patches_of(negate(5)), model, tmp_path / "same").folder
    assert seal_of_folder(ModelFolder(other), unit) == before
    assert seal_of_folder(ModelFolder(same), unit) != before


@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_weights_than_the_sealed_are_refused(tmp_path: Path, layout: str) -> None:
    model = model_of(tmp_path / "model", layout)
    sealed = PatchSet((SourcedPatch("p", seal_patch(patches_of(negate(5)).members[0], model)),))
    other = ModelFolder(bake(patches_of(negate(5)), model, tmp_path / "other").folder)
    assert refusal(lambda: check_patches(sealed, other), MismatchError).startswith(
        "p: seal.expert_neurons/1/2/5: broken: the model's weights are not the sealed ones ("
    )


def test_where_experts_have_tensors_of_their_own_a_seal_is_that_of_a_dense_neuron(tmp_path: Path) -> None:
    model = model_of(tmp_path / "model", "own")
    tensors = {name.replace(".mlp.experts.2.", ".mlp."): tensor for name, tensor in expert_tensors("own").items()}
    dense = {name: tensor for name, tensor in tensors.items() if ".experts." not in name and ".gate.weight" not in name}
    alike = ModelFolder(write_folder(tmp_path / "dense", dense, config_of((6, 6), HIDDEN)))
    assert seal_of_folder(model, Unit("expert_neurons", 1, 5, 2)) == seal_of_folder(alike, Unit("neurons", 1, 5))


# What else `diff` finds


def test_gains_on_rows_of_up_are_those_of_its_neurons(tmp_path: Path) -> None:
    base = write_experts(tmp_path / "base", "own")
    tensors = stored(base)
    tensors["model.layers.1.mlp.experts.2.up_proj.weight"][4] *= -1
    save_file(tensors, write_experts(tmp_path / "edited", "own") / "model.safetensors")

    found = changed(base, tmp_path / "edited")

    assert (found.expert_neurons, found.experts, found.unexplained) == ({(1, 2, 4): -1.0}, {}, [])
    assert found.notes == [
        "1 gain(s) stand on rows of up projections; from the down projection, where a patch puts them, they give the "
        "same outputs"
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_expert_that_changed_by_more_is_not_explained(tmp_path: Path, layout: str) -> None:
    base = write_experts(tmp_path / "base", layout)
    tensors = stored(base)
    matrix(tensors, layout)[3] *= 2
    matrix(tensors, layout)[4, 0] += 1
    save_file(tensors, write_experts(tmp_path / "edited", layout) / "model.safetensors")

    found = changed(base, tmp_path / "edited")

    assert (found.expert_neurons, found.experts, len(found.unexplained)) == ({}, {}, 1)
    assert "changed by more than a gain" in found.unexplained[0].reason


def test_a_gain_of_an_expert_and_one_inside_it_are_more_than_a_patch_says(tmp_path: Path) -> None:
    base = write_experts(tmp_path / "base", "own")
    tensors = stored(base)
    tensors["model.layers.1.mlp.experts.2.down_proj.weight"] *= -1
    tensors["model.layers.1.mlp.experts.2.up_proj.weight"][4] *= 0.5
    save_file(tensors, write_experts(tmp_path / "edited", "own") / "model.safetensors")

    found = changed(base, tmp_path / "edited")

    assert (found.expert_neurons, found.experts) == ({}, {(1, 2): -1.0})
    assert found.unexplained == [
        Unexplained(
            "expert 2 of layer 1", "has a gain of 0.5 on its neuron 4 and one on the whole, and a patch may name one", 1
        )
    ]


def test_a_gain_inside_a_masked_expert_is_left_out(tmp_path: Path) -> None:
    base = write_experts(tmp_path / "base", "shared with biases")
    tensors = stored(base)
    tensors["model.layers.1.mlp.experts.down_proj"][2, 4] *= 0.5
    tensors["model.layers.1.mlp.router.bias"][2] = torch.finfo(torch.float32).min
    save_file(tensors, write_experts(tmp_path / "edited", "shared with biases") / "model.safetensors")

    found = changed(base, tmp_path / "edited")

    assert (found.expert_neurons, found.masks, found.unexplained) == ({}, {(1, 2)}, [])
    assert found.notes == ["expert 2 of layer 1 is masked, so the gain of 0.5 of its neuron 4 is left out"]


# Which axis of a shared tensor counts neurons


def square(layout: str) -> dict[str, Any]:
    return expert_tensors(layout, width=8, hidden=8)


def test_where_both_sizes_are_alike_the_architecture_tells() -> None:
    (edit,) = plan_of(square("shared"), negate(5), architectures=("GptOssForCausalLM",)).edits
    assert [inner.axis for _, inner in edit.inside] == [0]


def test_where_nothing_tells_it_is_refused() -> None:
    assert refusal(lambda: plan_of(square("shared"), negate(5)), CheckpointError) == (
        "model.layers.1.mlp.experts.down_proj [4, 8, 8]: it can't be told which axis counts the neurons of an expert, "
        "and which what they write to"
    )


def test_gate_and_up_must_agree() -> None:
    tensors = square("shared") | {
        "model.layers.1.mlp.experts.gate_up_proj": expert_tensors("scaled", width=8)[
            "model.layers.1.experts.gate_up_proj"
        ]
    }
    assert refusal(lambda: plan_of(tensors, negate(5), architectures=("GptOssForCausalLM",)), MismatchError) == (
        "p.yaml: edits[0].expert_neurons.1.2: touches no tensor: model.layers.1.mlp.experts.gate_up_proj [4, 16, 8] "
        "isn't gate and up of model.layers.1.mlp.experts.down_proj [4, 8, 8]"
    )


# What is refused


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (negate(6), "edits[0].expert_neurons.1.2: index 6 is out of range: expert 2 of layer 1 has 6 neurons"),
        (negate(0, expert=4), "edits[0].expert_neurons.1.4: expert 4 is out of range: layer 1 has 4 experts"),
        (negate(0, layer=2), "edits[0].expert_neurons.2.2: layer 2 is out of range: the model has 2 layers"),
    ],
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_not_there_is_refused(tmp_path: Path, layout: str, edit: dict[str, Any], said: str) -> None:
    model = model_of(tmp_path, layout)
    assert refusal(lambda: check_patches(patches_of(edit), model), MismatchError) == f"p.yaml: {said}"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_expert_beyond_the_last_is_refused_where_the_config_counts_none(layout: str) -> None:
    tensors = expert_tensors(layout)
    assert refusal(lambda: plan_of(tensors, negate(0, expert=4), num_experts=None), MismatchError) == (
        "p.yaml: edits[0].expert_neurons.1.4: expert 4 is out of range: layer 1 has 4 experts"
    )


def test_an_expert_without_all_its_matrices_is_refused() -> None:
    tensors = expert_tensors("own")
    del tensors["model.layers.1.mlp.experts.2.up_proj.weight"]
    assert refusal(lambda: plan_of(tensors, negate(0)), MismatchError) == (
        "p.yaml: edits[0].expert_neurons.1.2: touches no tensor: expert 2 of layer 1 has no up tensor"
    )


def test_a_model_without_routed_experts_is_refused(tmp_path: Path) -> None:
    model = ModelFolder(write_folder(tmp_path, mlp_tensors((6, 6)), config_of((6, 6))))
    assert refusal(lambda: check_patches(patches_of(negate(0)), model), MismatchError) == (
        "p.yaml: edits[0].expert_neurons.1.2: touches no tensor: the model has no routed experts"
    )


def test_slots_do_not_reach_inside_experts(tmp_path: Path) -> None:
    model = model_of(tmp_path, "own")
    assert refusal(lambda: check_patches(patches_of(negate(0)), model, for_slots=True), MismatchError) == (
        "p.yaml: edits[0].expert_neurons.1.2: neurons inside an expert are edited in weights only: start the server "
        "without --patch-slots, or bake the patch"
    )


def test_an_adapter_can_not_hold_them(tmp_path: Path) -> None:
    model = model_of(tmp_path / "model", "own")
    assert refusal(lambda: export_lora(patches_of(negate(0)), model, tmp_path / "out"), MismatchError) == (
        "p.yaml: edits[0].expert_neurons.1.2: a LoRA adapter can't hold edits of routed experts or inside them, only of "
        "the neurons of dense MLPs and of shared experts; bake the patch instead"
    )


@pytest.mark.parametrize(
    ("edits", "said"),
    [
        (
            [negate(0), {"op": "zero", "experts": {"1": ["1-3"]}}],
            "edits[1].experts.1: expert 2 of layer 1, whole and inside: already named in edits[0].expert_neurons.1.2",
        ),
        (
            [{"op": "mask", "experts": {"1": [2]}}, negate(0)],
            "edits[1].expert_neurons.1.2: expert 2 of layer 1, whole and inside: already named in edits[0].experts.1",
        ),
        (
            [negate(5), zero({"1": {"2": ["4-6"]}}, "expert_neurons")],
            "edits[1].expert_neurons.1.2: neurons 5 of expert 2 of layer 1: already named in edits[0].expert_neurons.1.2",
        ),
        (
            [{"op": "mask", "experts": {"1": [0]}, "expert_neurons": {"1": {"2": [0]}}}],
            "edits[0].expert_neurons: `mask` is for routed experts; for neurons use `zero`",
        ),
        (
            [{"op": "set", "value": 1.0, "expert_neurons": {"1": {"2": [0]}}}],
            "edits[0].expert_neurons: `set` and `add` work in slots alone, which don't reach neurons inside experts",
        ),
        (
            [{"op": "project", "direction": {"values": "AACAPw=="}, "expert_neurons": {"1": {"2": [0]}}}],
            "edits[0].expert_neurons: `project` is for `neurons` and `shared`; inside experts use scale, zero or negate",
        ),
        (
            [zero({"1": [2]}, "expert_neurons")],
            "edits[0].expert_neurons.1: expected experts with their neurons, such as {34: [511]}, got [2]",
        ),
        (
            [{"op": "zero", "expert_neurons": [2]}],
            "edits[0].expert_neurons: expected layers with experts and neurons, such as {12: {34: [511]}}, got [2]",
        ),
        (
            [zero({}, "expert_neurons")],
            "edits[0].expert_neurons: names no units; give at least one layer with an expert and an index",
        ),
        (
            [zero({"1": {}}, "expert_neurons")],
            "edits[0].expert_neurons.1: names no units; give at least one expert with an index",
        ),
        (
            [zero({"1": {"x": [2]}}, "expert_neurons")],
            "edits[0].expert_neurons.1: expected an expert number from 0 to 9999, got 'x'",
        ),
        (
            [zero({"1": {"2": [-1]}}, "expert_neurons")],
            "edits[0].expert_neurons.1.2[0]: index -1 is negative",
        ),
    ],
)
def test_what_a_file_must_not_say_is_refused(edits: list[Any], said: str) -> None:
    assert refusal(lambda: Patch.from_data(patch_data(*edits), "p"), PatchError) == f"p: {said}"


def test_two_files_must_not_name_an_expert_and_a_neuron_inside_it() -> None:
    whole, inside = patches_of(zero({"1": [2]}, "experts"), source="a"), patches_of(negate(0), source="b")
    assert refusal(lambda: PatchSet((*whole.members, *inside.members)), PatchError) == (
        "b: edits[0].expert_neurons.1.2: expert 2 of layer 1, whole and inside: already named in a, edits[0].experts.1"
    )


# In words, and controls


def test_it_is_said_in_words() -> None:
    assert "neurons inside experts negated: expert 2 of layer 1: 5" in describe(Patch.from_data(patch_data(negate(5))))


def test_a_seal_names_it() -> None:
    unit = Unit("expert_neurons", 12, 511, 34)
    assert (str(unit), Unit.parse("expert_neurons/12/34/511")) == ("expert_neurons/12/34/511", unit)


def test_the_inventory_tells_of_them(tmp_path: Path) -> None:
    assert (
        "layers 0-1: 6 neurons inside each expert; gains go on model.layers.*.mlp.experts.*.down_proj.weight (F32); "
        "exact: scale, zero, negate"
    ) in list(take_inventory(model_of(tmp_path, "own")).lines())


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ("own", "model.layers.1.mlp.experts.2.down_proj.weight F32 [8, 6], neurons of expert 2: 0 x 0.7, 3 silenced, 5 x 0.7"),
        (
            "shared",
            "model.layers.1.mlp.experts.down_proj F32 [4, 6, 8], experts: 1 negated; neurons of expert 2: 0 x 0.7, "
            "3 silenced, 5 x 0.7; neurons of expert 3: 1 negated",
        ),
    ],
)  # fmt: skip
def test_check_prints_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str], layout: str, said: str) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(Patch.from_data(patch_data(*EDITS, {"op": "negate", "experts": {"1": [1]}})).to_yaml())
    assert main(["check", str(file), "--model", str(write_experts(tmp_path / "model", layout))]) == 0
    assert f"  {said}\n" in capsys.readouterr().out


def test_diff_counts_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = model_of(tmp_path / "model", "own")
    bake(patches_of(*EDITS), model, tmp_path / "baked")
    assert main(["diff", str(model.path), str(tmp_path / "baked"), "-o", str(tmp_path / "p.yaml")]) == 0
    assert capsys.readouterr().out.endswith(", 6 neurons inside experts\n")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shams_are_drawn_from_the_same_expert(tmp_path: Path, layout: str) -> None:
    patch = Patch.from_data(patch_data(negate(2)))
    (sham,) = make_shams(patch, model_of(tmp_path, layout), 1, seed=7)
    (unit,) = sham.units
    assert unit.block == ("expert_neurons", 1, 2)
    assert unit.index != 2
    assert sham.norm_ratio is not None
