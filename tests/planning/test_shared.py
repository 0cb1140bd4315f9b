# SPDX-License-Identifier: Apache-2.0
"""Neurons of shared experts: a kind of unit of their own, beside the neurons of dense MLPs and the routed experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.examples import patch_data, patches_of, refusal, zero
from tests.folders import Tensor, config_of, expert_tensors, mlp_tensors, random_tensor, write_folder
from vllm_surgery import MismatchError, ModelFolder, Patch, PatchError
from vllm_surgery.evaluation.shams import make_shams
from vllm_surgery.offline.bake import bake
from vllm_surgery.offline.diff import diff
from vllm_surgery.patch.describe import describe
from vllm_surgery.patch.patch_set import PatchSet, SourcedPatch
from vllm_surgery.patch.units import Unit
from vllm_surgery.planning.check import check_patches, seal_patch
from vllm_surgery.planning.inventory import describe_model, take_inventory

if TYPE_CHECKING:
    from pathlib import Path

WIDTH, HIDDEN = 6, 8
QWEN, DEEPSEEK, HUNYUAN, GRANITE = "mlp.shared_expert", "mlp.shared_experts", "mlp.shared_mlp", "shared_mlp"


def shared_tensors(name: str, layers: tuple[int, ...] = (0, 1)) -> dict[str, Tensor]:
    """The shared experts of some layers."""
    shapes = {"gate_proj": (WIDTH, HIDDEN), "up_proj": (WIDTH, HIDDEN), "down_proj": (HIDDEN, WIDTH)}
    if name == GRANITE:
        shapes = {"input_linear": (2 * WIDTH, HIDDEN), "output_linear": (HIDDEN, WIDTH)}
    return {
        f"model.layers.{layer}.{name}.{part}.weight": random_tensor("F32", shape, layer, number)
        for layer in layers
        for number, (part, shape) in enumerate(shapes.items())
    }


def write(folder: Path, name: str = QWEN) -> ModelFolder:
    """A model with routed experts and a shared one in each of two layers."""
    tensors = expert_tensors("own", width=WIDTH, hidden=HIDDEN) | shared_tensors(name)
    return ModelFolder(write_folder(folder, tensors, config_of((6, 6), HIDDEN, num_experts=4)))


@pytest.mark.parametrize("name", [QWEN, DEEPSEEK, HUNYUAN, GRANITE])
def test_every_naming_is_found_sealed_baked_and_compared(tmp_path: Path, name: str) -> None:
    model = write(tmp_path / "model", name)
    wanted = patches_of({"op": "scale", "factor": 2.0, "shared": {"1": [0, 5]}}, zero({"0": [3]}, "shared"))
    sealed = PatchSet((SourcedPatch("p", seal_patch(wanted.members[0], model)),))

    done = bake(sealed, model, tmp_path / "baked")
    found = diff(model, ModelFolder(tmp_path / "baked"))

    assert (done.units, done.tensors) == (3, 2)
    assert found.shared == {(0, 3): 0.0, (1, 0): 2.0, (1, 5): 2.0}
    assert (found.gains, found.experts, found.unexplained) == ({}, {}, [])
    again = found.patch("small", model)
    assert again is not None
    assert again.digest == sealed.members[0].patch.digest


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (zero({"0": [WIDTH]}, "shared"), "edits[0].shared.0: index 6 is out of range: layer 0 has 6 shared neurons"),
        (zero({"2": [0]}, "shared"), "edits[0].shared.2: layer 2 is out of range: the model has 2 layers"),
        (
            zero({"0": [0]}),
            "edits[0].neurons.0: touches no tensor: layer 0 has no gated MLP in a naming that is known "
            "(no gate, up, down projection); its shared expert's neurons are named by `shared`",
        ),
    ],
)
def test_what_is_not_there_is_refused(tmp_path: Path, edit: dict[str, Any], said: str) -> None:
    model = write(tmp_path)
    assert refusal(lambda: check_patches(patches_of(edit), model), MismatchError) == f"p.yaml: {said}"


def test_a_model_without_shared_experts_has_no_such_units(tmp_path: Path) -> None:
    model = ModelFolder(write_folder(tmp_path, mlp_tensors((6,)), config_of((6,))))
    assert refusal(lambda: check_patches(patches_of(zero({"0": [0]}, "shared")), model), MismatchError) == (
        "p.yaml: edits[0].shared.0: touches no tensor: layer 0 has no shared expert in a naming that is known "
        "(no gate, up, down projection)"
    )


def test_a_neuron_and_one_of_a_shared_expert_are_two_units() -> None:
    both = {"op": "zero", "neurons": {"1": [2]}, "shared": {"1": [2]}}
    assert (
        len({Patch.from_data(patch_data(edit)).digest for edit in (both, zero({"1": [2]}), zero({"1": [2]}, "shared"))})
        == 3
    )
    twice = patch_data(zero({"1": [2]}, "shared"), {"op": "negate", "shared": {"1": ["1-4"]}})
    assert refusal(lambda: Patch.from_data(twice, "p"), PatchError) == (
        "p: edits[1].shared.1: shared neurons 2 of layer 1: already named in edits[0].shared.1"
    )


def test_it_is_said_in_words() -> None:
    assert "shared neurons silenced: layer 1: 2" in describe(Patch.from_data(patch_data(zero({"1": [2]}, "shared"))))


def test_a_seal_names_it() -> None:
    assert Unit.parse("shared/3/7") == Unit("shared", 3, 7)


def test_a_mask_of_one_is_refused() -> None:
    data = patch_data({"op": "mask", "experts": {"1": [0]}, "shared": {"1": [2]}})
    assert refusal(lambda: Patch.from_data(data, "p"), PatchError) == (
        "p: edits[0].shared: `mask` is for routed experts; for neurons use `zero`"
    )


def test_the_inventory_and_the_model_in_words_tell_of_them(tmp_path: Path) -> None:
    model = write(tmp_path)
    lines = list(take_inventory(model).lines())
    assert (
        "layers 0-1: 6 shared neurons each; gains go on model.layers.*.mlp.shared_expert.down_proj.weight (F32); "
        "exact: scale, zero, negate"
    ) in lines
    assert "6 neurons in each of 2 shared experts" in describe_model(model)


def test_shams_are_drawn_from_the_same_shared_expert(tmp_path: Path) -> None:
    patch = Patch.from_data(patch_data(zero({"1": [2]}, "shared")))
    (sham,) = make_shams(patch, write(tmp_path), 1, seed=7)
    (unit,) = sham.units
    assert (unit.kind, unit.layer) == ("shared", 1)
    assert unit.index != 2
    assert sham.norm_ratio is not None
