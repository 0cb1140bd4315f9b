# SPDX-License-Identifier: Apache-2.0
"""The seal of a quantised unit covers all that it is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from tests.examples import refusal
from tests.planning.test_quantised import EXPERT, LAYER, NEURON, patches, rewritten
from tests.quantised import EXPERTS, KINDS, WIDTH, make, name, parts_of, stored
from vllm_surgery import MismatchError, ModelFolder, PatchSet
from vllm_surgery.patch.patch_set import SourcedPatch
from vllm_surgery.patch.units import Unit
from vllm_surgery.planning.check import check_patches, seal_patch
from vllm_surgery.planning.seal import seal_of_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.quantised import Tensors


def shifted(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor whose every byte is another."""
    return (tensor.reshape(-1, 1).view(torch.uint8) ^ 1).view(tensor.dtype).view(tensor.shape)


def meddled(tensors: Tensors, key: str) -> Tensors:
    return {**tensors, key: shifted(tensors[key])}


def ends(word: str, part_name: str, expert: int | None = None) -> Iterator[str]:
    for end in parts_of(
        {name(0, part_name, end): torch.empty(0) for end in KINDS[word].quantise(torch.ones(32, 32))}, 0, part_name
    ):
        if end not in {"weight_shape", "input_scale"}:
            yield name(LAYER, part_name, end, expert)


@pytest.mark.parametrize("word", KINDS)
def test_every_tensor_of_a_neuron_is_covered(tmp_path: Path, word: str) -> None:
    model = make(tmp_path / "model", KINDS[word])
    tensors, seal = stored(model), seal_of_folder(ModelFolder(model), Unit("neurons", LAYER, NEURON))

    for key in [key for part_name in ("gate", "up", "down") for key in ends(word, part_name)]:
        assert seal_of_folder(rewritten(model, meddled(tensors, key)), Unit("neurons", LAYER, NEURON)) != seal, key


@pytest.mark.parametrize("word", KINDS)
def test_every_tensor_of_an_expert_is_covered(tmp_path: Path, word: str) -> None:
    model = make(tmp_path / "model", KINDS[word], experts=True)
    tensors, seal = stored(model), seal_of_folder(ModelFolder(model), Unit("experts", LAYER, EXPERT))

    for key in [key for part_name in ("gate", "up", "down") for key in ends(word, part_name, EXPERT)]:
        assert seal_of_folder(rewritten(model, meddled(tensors, key)), Unit("experts", LAYER, EXPERT)) != seal, key


@pytest.mark.parametrize("word", KINDS)
def test_another_expert_is_not(tmp_path: Path, word: str) -> None:
    model = make(tmp_path / "model", KINDS[word], experts=True)
    seal = seal_of_folder(ModelFolder(model), Unit("experts", LAYER, EXPERT))

    other = rewritten(model, meddled(stored(model), next(ends(word, "down", EXPERTS - 1))))

    assert seal_of_folder(other, Unit("experts", LAYER, EXPERT)) == seal


@pytest.mark.parametrize("word", ["fp8 per channel", "int8 per channel", "int4 in groups", "gptq", "awq"])
@pytest.mark.parametrize("index", [0, NEURON, WIDTH - 1])
def test_neurons_far_away_are_not(tmp_path: Path, word: str, index: int) -> None:
    kind, model = KINDS[word], make(tmp_path / "model", KINDS[word])
    assert kind.out_axis is not None
    seal = seal_of_folder(ModelFolder(model), Unit("neurons", LAYER, index))
    tensors, key = stored(model), name(LAYER, "up", kind.scale)
    far = (index + WIDTH // 2) % WIDTH
    tensors[key].select(kind.out_axis, far).mul_(2)

    assert seal_of_folder(rewritten(model, tensors), Unit("neurons", LAYER, index)) == seal


@pytest.mark.parametrize("word", KINDS)
def test_a_sealed_patch_fits_its_model_and_no_other(tmp_path: Path, word: str) -> None:
    model = make(tmp_path / "model", KINDS[word])
    folder = ModelFolder(model)
    patch = seal_patch(patches(-1.0).members[0], folder)
    bound = PatchSet((SourcedPatch("p", patch),))

    assert check_patches(bound, folder).units == 1
    assert patch.model.intermediate_size == WIDTH
    other = rewritten(model, meddled(stored(model), next(ends(word, "gate"))))
    assert "broken" in refusal(lambda: check_patches(bound, other), MismatchError)
