# SPDX-License-Identifier: Apache-2.0
"""Neurons inside quantised experts: held, and refused, as the neurons of a dense MLP that is stored alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.examples import refusal
from tests.planning.test_quantised import GAINS, LAYER, NEURON, baked, cases, changed, holds, patches
from tests.quantised import KINDS, WIDTH, make, stored
from vllm_surgery import MismatchError, ModelFolder, Patch, PatchSet
from vllm_surgery.engine.load.weight_stream import SurgicalLoad
from vllm_surgery.offline.bake import bake
from vllm_surgery.offline.diff import diff
from vllm_surgery.patch.patch_set import SourcedPatch
from vllm_surgery.planning.check import check_patches, seal_patch

if TYPE_CHECKING:
    from pathlib import Path

    from tests.quantised import Tensors

EXPERT = 0
"""Its weights are those of the dense MLP of its layer."""
REFUSED = [(word, gain) for word in KINDS for gain in GAINS if not holds(word, gain)]


def inside(gain: float, neuron: int = NEURON) -> PatchSet:
    (member,) = patches(gain).members
    data = member.patch.to_data()
    (edit,) = data["edits"]
    del edit["neurons"]
    edit["expert_neurons"] = {str(LAYER): {str(EXPERT): [neuron]}}
    return PatchSet((SourcedPatch("p", Patch.from_data(data)),))


def as_dense(tensors: Tensors) -> Tensors:
    """The tensors of expert 0, under a dense MLP's names, and those of no expert."""
    renamed = {key.replace(f".experts.{EXPERT}.", "."): tensor for key, tensor in tensors.items()}
    return {key: tensor for key, tensor in renamed.items() if ".experts." not in key}


@cases(list(KINDS))
def test_an_experts_neuron_becomes_what_a_dense_mlps_becomes(tmp_path: Path, word: str, gain: float) -> None:
    experts = make(tmp_path / "experts", KINDS[word], experts=True)
    bake(inside(gain), ModelFolder(experts), tmp_path / "out")
    dense = baked(make(tmp_path / "dense", KINDS[word]), gain)

    found = as_dense(stored(tmp_path / "out"))
    assert not list(changed({key: found[key] for key in dense}, dense))
    others = [key for key, _ in changed(stored(experts), stored(tmp_path / "out")) if f".experts.{EXPERT}." not in key]
    assert others == []


@cases(list(KINDS))
def test_it_is_found_again_and_loaded_alike(tmp_path: Path, word: str, gain: float) -> None:
    model = make(tmp_path / "experts", KINDS[word], experts=True)
    bake(inside(gain), ModelFolder(model), tmp_path / "out")

    found = diff(ModelFolder(model), ModelFolder(tmp_path / "out"))
    load = SurgicalLoad(inside(gain), ModelFolder(model).facts)
    loaded = dict(load.edit_stream(stored(model).items()))

    assert (found.expert_neurons, found.experts, found.unexplained) == ({(LAYER, EXPERT, NEURON): gain}, {}, [])
    assert not list(changed(loaded, stored(tmp_path / "out")))
    assert load.finish().units == 1


@pytest.mark.parametrize(("word", "gain"), REFUSED)
def test_what_no_scale_of_their_own_holds_is_refused_alike(tmp_path: Path, word: str, gain: float) -> None:
    experts = ModelFolder(make(tmp_path / "experts", KINDS[word], experts=True))
    dense = ModelFolder(make(tmp_path / "dense", KINDS[word]))

    said = refusal(lambda: check_patches(inside(gain), experts), MismatchError)

    expected = refusal(lambda: check_patches(patches(gain), dense), MismatchError)
    assert said.replace(f"experts.{EXPERT}.", "").replace(f"expert_neurons.{LAYER}.{EXPERT}", f"neurons.{LAYER}") == (
        expected
    )


@pytest.mark.parametrize("word", KINDS)
def test_the_last_neuron_is_one_and_the_next_is_refused(tmp_path: Path, word: str) -> None:
    model = ModelFolder(make(tmp_path / "model", KINDS[word], experts=True))
    check_patches(inside(-1.0, WIDTH - 1), model)
    assert refusal(lambda: check_patches(inside(-1.0, WIDTH), model), MismatchError).endswith(
        f"index {WIDTH} is out of range: expert {EXPERT} of layer {LAYER} has {WIDTH} neurons"
    )


@pytest.mark.parametrize("word", KINDS)
def test_its_seal_is_that_of_a_dense_neuron(tmp_path: Path, word: str) -> None:
    experts = ModelFolder(make(tmp_path / "experts", KINDS[word], experts=True))
    dense = ModelFolder(make(tmp_path / "dense", KINDS[word]))
    (one,), (other,) = (
        seal_patch(patched.members[0], model).seal.values()
        for patched, model in ((inside(-1.0), experts), (patches(-1.0), dense))
    )
    assert one == other
