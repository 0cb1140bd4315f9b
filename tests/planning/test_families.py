# SPDX-License-Identifier: Apache-2.0
"""Checkpoints as transformers itself writes them, of every family: found, edited, compared, and turned back."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest
from safetensors.torch import load_file

from tests.examples import refusal
from tests.folders import Tensor, mlp_tensors, write_folder
from tests.models import (
    DENSE_FIRST_LAYER,
    EXPERT_FAMILIES,
    EXPERTS,
    FAMILIES,
    LAYERS,
    LIKE_LLAMA,
    ONLY_EXPERTS,
    SEEING_FAMILIES,
    WIDTH,
    edit_slices,
    has_experts,
    patch_of,
    shared_expert_of,
)
from vllm_surgery import MismatchError, ModelFolder, Patch, PatchSet
from vllm_surgery.offline.bake import bake
from vllm_surgery.offline.diff import diff
from vllm_surgery.patch.patch_set import SourcedPatch
from vllm_surgery.patch.units import Unit
from vllm_surgery.planning.check import seal_patch
from vllm_surgery.planning.guard import guard_of
from vllm_surgery.planning.inventory import take_inventory
from vllm_surgery.planning.planner import plan
from vllm_surgery.planning.seal import seal_of_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.slow  # Transformers makes a model of every family.

NEURONS = {(0, 0): -1.0, (0, 7): 0.0, (3, WIDTH - 1): 0.5}
ROUTED = {(1, 0): -1.0, (1, 3): 0.0, (3, EXPERTS - 1): 0.5}
SHARED = {(1, 0): -1.0, (1, 9): 0.0, (3, 63): 0.5}


def gains_of(family: str) -> tuple[dict[tuple[int, int], float], dict[tuple[int, int], float]]:
    """Gains of neurons and of experts that a family's model has."""
    experts = ROUTED if has_experts(family) else {}
    if family.split("/", maxsplit=1)[0] in ONLY_EXPERTS:
        return {}, experts
    neurons = {unit: gain for unit, gain in NEURONS.items() if unit[0] == 0} if family in DENSE_FIRST_LAYER else NEURONS
    return neurons, experts


def shared_of(family: str) -> dict[tuple[int, int], float]:
    """Gains of neurons of shared experts that a family's model has."""
    return {} if shared_expert_of(family) is None else SHARED


def sealed_patch(model: ModelFolder, neurons: Any, experts: Any, shared: Any) -> PatchSet:
    """The gains as a patch that fits this model alone."""
    member = SourcedPatch("p", Patch.from_data(patch_of(neurons, experts=experts, shared=shared)))
    return PatchSet((SourcedPatch("p", seal_patch(member, model)),))


def round_trip(model: ModelFolder, work: Path, neurons: Any, experts: Any, shared: Any = MappingProxyType({})) -> None:
    """Seals, bakes and compares: the difference is the patch."""
    patches = sealed_patch(model, neurons, experts, shared)
    done = bake(patches, model, work / "baked")
    found = diff(model, ModelFolder(work / "baked"))
    assert (found.gains, found.experts, found.shared, found.unexplained) == (neurons, experts, shared, [])
    assert done.units == len(neurons) + len(experts) + len(shared)
    again = found.patch("test", model)
    assert again is not None
    assert again.digest == patches.members[0].patch.digest


@pytest.mark.parametrize("family", [*FAMILIES, *EXPERT_FAMILIES])
def test_diff_of_a_bake_is_the_sealed_patch(family: str, tmp_path: Path, family_model: Callable[[str], Path]) -> None:
    round_trip(ModelFolder(family_model(family)), tmp_path, *gains_of(family), shared_of(family))


@pytest.mark.parametrize("family", LIKE_LLAMA)
def test_families_that_are_stored_as_llama_is(family: str, tmp_path: Path, family_model: Callable[[str], Path]) -> None:
    models = [ModelFolder(family_model(name)) for name in (family, "Llama")]
    assert [take_inventory(model).found for model in models] == [take_inventory(models[1]).found] * 2
    round_trip(models[0], tmp_path, NEURONS, {})


def test_llama_4_has_dense_layers_between_those_with_experts(
    tmp_path: Path, family_model: Callable[[str], Path]
) -> None:
    model = ModelFolder(family_model("Llama4/dense too"))
    round_trip(model, tmp_path, {(0, 0): -1.0, (0, WIDTH - 1): 0.5}, {(1, 0): -1.0, (1, EXPERTS - 1): 0.5})


@pytest.mark.parametrize("family", [*FAMILIES, *EXPERT_FAMILIES])
def test_negating_twice_gives_the_base_back(family: str, tmp_path: Path, family_model: Callable[[str], Path]) -> None:
    base = ModelFolder(family_model(family))
    neurons, experts, shared = (dict.fromkeys(gains, -1.0) for gains in (*gains_of(family), shared_of(family)))
    patches = PatchSet((SourcedPatch("p", Patch.from_data(patch_of(neurons, experts=experts, shared=shared))),))
    bake(patches, base, tmp_path / "once")
    bake(patches, ModelFolder(tmp_path / "once"), tmp_path / "twice")

    first, once, twice = (
        (folder / "model.safetensors").read_bytes() for folder in (base.path, tmp_path / "once", tmp_path / "twice")
    )

    assert once != first
    assert twice == first


@pytest.mark.parametrize("family", SEEING_FAMILIES)
def test_the_language_model_of_one_that_sees_is_edited(
    family: str, tmp_path: Path, family_model: Callable[[str], Path]
) -> None:
    folder = family_model(family)
    round_trip(ModelFolder(folder), tmp_path, *gains_of(family), shared_of(family))

    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "baked" / "model.safetensors")
    changed = {name for name in before if not before[name].equal(after[name])}
    assert {"language_model" in name for name in changed} == {True}


def test_an_mlp_without_a_gate_has_no_neurons_that_are_known(family_model: Callable[[str], Path]) -> None:
    model = ModelFolder(family_model("Phi"))
    patches = PatchSet((SourcedPatch("p", Patch.from_data(patch_of({(1, 2): -1.0}))),))

    assert refusal(lambda: plan(patches, model.facts, model.tensors), MismatchError) == (
        "p: edits[0].neurons.1: touches no tensor: layer 1 has no gated MLP in a naming that is known "
        "(no gate, up, down projection)"
    )
    assert list(take_inventory(model).lines())[-1] == "nothing in this model can be edited"


def test_layers_of_two_widths_have_their_own_range(family_model: Callable[[str], Path], tmp_path: Path) -> None:
    model = ModelFolder(family_model("Gemma4/dense"))
    widths = [WIDTH] * (LAYERS - 2) + [2 * WIDTH] * 2

    assert guard_of(model)["intermediate_size"] == widths
    round_trip(model, tmp_path, {(LAYERS - 1, 2 * WIDTH - 1): -1.0, (0, WIDTH - 1): 0.5}, {})


def test_gate_and_up_in_one_tensor_are_sealed_like_two_tensors(tmp_path: Path) -> None:
    apart = mlp_tensors((6,))
    gate, up = (apart[f"model.layers.0.mlp.{part}_proj.weight"] for part in ("gate", "up"))
    joined = {
        "model.layers.0.mlp.gate_up_proj.weight": Tensor("F32", (12, 4), gate.data + up.data),
        "model.layers.0.mlp.down_proj.weight": apart["model.layers.0.mlp.down_proj.weight"],
    }
    folders = [ModelFolder(write_folder(tmp_path / str(n), tensors, {})) for n, tensors in enumerate((apart, joined))]

    for index in range(6):
        assert seal_of_folder(folders[0], Unit("neurons", 0, index)) == seal_of_folder(
            folders[1], Unit("neurons", 0, index)
        )


@pytest.mark.parametrize(("row", "expected"), [(2, {}), (2 + WIDTH, {(1, 2): -1.0})], ids=["gate", "up"])
def test_of_gate_and_up_in_one_tensor_only_up_holds_gains(
    row: int, expected: dict[tuple[int, int], float], tmp_path: Path, family_model: Callable[[str], Path]
) -> None:
    base = family_model("Phi3")
    edited = edit_slices(base, tmp_path / "edited", {("model.layers.1.mlp.gate_up_proj.weight", 0, row): -1.0})

    found = diff(ModelFolder(base), ModelFolder(edited))

    assert found.gains == expected
    assert len(found.unexplained) == (0 if expected else 1)


def test_a_silent_gate_row_silences_its_neuron_only_where_neurons_dont_depend_on_each_other(
    tmp_path: Path, family_model: Callable[[str], Path]
) -> None:
    base = family_model("Gemma3n")
    rows = {(f"model.layers.{layer}.mlp.gate_proj.weight", 0, 5): 0.0 for layer in (0, LAYERS - 1)}

    found = diff(ModelFolder(base), ModelFolder(edit_slices(base, tmp_path / "edited", rows)))

    assert found.gains == {(LAYERS - 1, 5): 0.0}
    assert [item.tensor for item in found.unexplained] == ["model.layers.0.mlp.gate_proj.weight"]
