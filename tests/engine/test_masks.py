# SPDX-License-Identifier: Apache-2.0
"""Masked experts: served == transformers' forward pass with these experts' logits at minus infinity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engine.families import SERVED_EXPERTS, case_of
from tests.engine.offline import PROMPTS, Arm, run_arms
from tests.engine.reference import assert_close
from tests.engine.test_load import same
from tests.models import EXPERTS, ROUTER_BIASES, edit_slices, patch_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    Answer = dict[str, Any]

pytestmark = pytest.mark.engine

MASKED = [(1, 0), (1, 3), (2, 5), (3, EXPERTS - 1)]
OTHERS = [(1, 3), (2, 1), (2, 2)]
"""A second set: it frees some of the first, keeps one, and masks others."""
UNPATCHED = ("Qwen3Moe", "DeepseekV3", "GptOss")
"""By the engine, by a bias of scores, and by a bias of logits."""


def masks(experts: list[tuple[int, int]], name: str = "masks") -> dict[str, Any]:
    edits = [{"op": "mask", "experts": {str(layer): [index]}} for layer, index in experts]
    return {"version": 1, "name": name, "edits": edits}


def with_biases(model: Path, folder: Path, ending: str) -> Path:
    """A copy of `model` whose routers' biases like some experts better than others, and masked ones best."""
    edit_slices(model, folder, {})
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith(ending):
            layer = int(name.split(".")[2])
            tensor.copy_(torch.linspace(-0.2, 0.2, EXPERTS))
            tensor[[expert for at, expert in MASKED if at == layer]] = 1.5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, family_model: Callable[[str], Path]) -> Mapping[str, Path]:
    work = tmp_path_factory.mktemp("masks")
    return {
        family: with_biases(family_model(family), work / family, ROUTER_BIASES[family])
        if family in ROUTER_BIASES
        else family_model(family)
        for family in SERVED_EXPERTS
    }


def how(family: str) -> dict[str, Any]:
    """How a family's model is asked."""
    return {"options": case_of(family).options, "max_tokens": 6}


@pytest.fixture(scope="module")
def answers(folders: Mapping[str, Path]) -> dict[str, Answer]:
    """Each family masked at load, then swapped; of the ways to mask, one family each that starts unpatched."""
    zero = patch_of({}, "zero", experts=dict.fromkeys(MASKED, 0.0))
    arms: dict[str, Arm] = {}
    for family, folder in folders.items():
        later = [[masks(OTHERS, "others")], [zero], []]
        arms[family] = Arm(str(folder), [masks(MASKED)], later=later, **how(family))
    arms["GptOss zeroed"] = Arm(str(folders["GptOss"]), [zero], **how("GptOss"))  # Which no swap can do.
    for family in UNPATCHED:
        arms[f"{family} unpatched"] = Arm(str(folders[family]), [], later=[[masks(MASKED)], []], **how(family))
    return dict(zip(arms, run_arms(*arms.values()), strict=True))


@pytest.mark.parametrize("family", SERVED_EXPERTS)
def test_a_mask_is_a_logit_of_minus_infinity(
    answers: dict[str, Answer], folders: Mapping[str, Path], family: str
) -> None:
    others, _, unmasked = answers[family]["later"]
    assert_close(answers[family], folders[family], PROMPTS, masked=MASKED)
    assert_close(others, folders[family], PROMPTS, masked=OTHERS)
    assert_close(unmasked, folders[family], PROMPTS)


@pytest.mark.parametrize("family", SERVED_EXPERTS)
def test_a_zero_is_an_output_removed_and_no_mask(
    answers: dict[str, Answer], folders: Mapping[str, Path], family: str
) -> None:
    swapped = answers[family]["later"]
    zeroed = answers["GptOss zeroed"] if family == "GptOss" else swapped[1]
    assert_close(zeroed, folders[family], PROMPTS, removed=MASKED)
    assert len({str(answer["logprobs"]) for answer in (answers[family], zeroed, swapped[-1])}) == 3


@pytest.mark.parametrize("family", SERVED_EXPERTS)
def test_masks_are_counted_as_units(answers: dict[str, Answer], family: str) -> None:
    (report,) = answers[family]["reports"]
    assert (report["units"], report["tensors"]) == (len(MASKED), 3 if family in ROUTER_BIASES else 0)


@pytest.mark.parametrize("family", UNPATCHED)
def test_masks_swapped_in_and_out_equal_fresh_ones_and_none(answers: dict[str, Answer], family: str) -> None:
    masked, unpatched = answers[family], answers[f"{family} unpatched"]
    swapped_in, swapped_out = unpatched["later"]
    assert swapped_in["swap"]["modules"] == 3
    assert same(swapped_in, masked)
    assert same(swapped_out, unpatched)
    assert same(masked["later"][-1], unpatched)
