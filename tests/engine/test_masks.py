# SPDX-License-Identifier: Apache-2.0
"""Masked experts: served == transformers' forward pass with these experts' logits at minus infinity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engine.offline import PROMPTS, Arm, run_arms
from tests.engine.reference import chances
from tests.engine.test_load import same
from tests.models import EXPERT_FAMILIES, EXPERTS, ROUTER_BIASES, edit_slices, patch_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    Answer = dict[str, Any]

pytestmark = pytest.mark.engine

MASKED = [(1, 0), (1, 3), (2, 5), (3, EXPERTS - 1)]
OTHERS = [(1, 3), (2, 1), (2, 2)]
"""A second set: it frees some of the first, keeps one, and masks others."""
FEW = 1e-4
"""How far log-probabilities may be off: engine and transformers sum float32 numbers in another order."""

FIRST_TOKENS = [[5], [17], [200], [12], [300], [41]]
"""DeepSeek V2's prompts. At these sizes vLLM's attention on CPUs and transformers' differ where there is more than one
token, masks or none; with one token there is nothing to attend to."""

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
        for family in EXPERT_FAMILIES
    }


@pytest.fixture(scope="module")
def answers(folders: Mapping[str, Path]) -> dict[str, Answer]:
    """Each family masked at load, then swapped; of the ways to mask, one family each that starts unpatched."""
    zero = patch_of({}, "zero", experts=dict.fromkeys(MASKED, 0.0))
    how: dict[str, Any] = {"options": {"dtype": "float32"}, "max_tokens": 6}
    first: dict[str, Any] = {"options": {"dtype": "float32"}, "max_tokens": 1, "prompts": FIRST_TOKENS}
    arms: dict[str, Arm] = {}
    for family, folder in folders.items():
        later = [[masks(OTHERS, "others")], [zero], []]
        arms[family] = Arm(str(folder), [masks(MASKED)], later=later, **(first if family == "DeepseekV2" else how))
    arms["DeepseekV3 by hand"] = Arm(str(by_hand(folders["DeepseekV3"])), **how)
    for family in UNPATCHED:
        arms[f"{family} unpatched"] = Arm(str(folders[family]), [], later=[[masks(MASKED)], []], **how)
    return dict(zip(arms, run_arms(*arms.values()), strict=True))


def by_hand(model: Path) -> Path:
    """A copy of a model with correction biases in which no sum with a score makes a masked expert's the best."""
    folder = edit_slices(model, model.parent / f"{model.name} by hand", {})
    tensors = load_file(folder / "model.safetensors")
    for layer, expert in MASKED:
        tensors[f"model.layers.{layer}.{ROUTER_BIASES['DeepseekV3']}"][expert] = -1e6
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def assert_close(served: Answer, folder: Path, masked: list[tuple[int, int]], prompts: Any = PROMPTS) -> None:
    """The same greedy tokens, and log-probabilities that differ by rounding."""
    expected = chances(folder, prompts, served["tokens"], masked)
    for tokens, logprobs, steps in zip(served["tokens"], served["logprobs"], expected, strict=True):
        assert steps.argmax(dim=-1).tolist() == tokens
        for told, step in zip(logprobs, steps, strict=True):
            assert [chance for _, chance in told] == pytest.approx([float(step[token]) for token, _ in told], abs=FEW)


@pytest.mark.parametrize("family", [family for family in EXPERT_FAMILIES if family != "DeepseekV3"])
def test_a_mask_is_a_logit_of_minus_infinity(
    answers: dict[str, Answer], folders: Mapping[str, Path], family: str
) -> None:
    others, _, unmasked = answers[family]["later"]
    prompts = FIRST_TOKENS if family == "DeepseekV2" else PROMPTS
    assert_close(answers[family], folders[family], MASKED, prompts)
    assert_close(others, folders[family], OTHERS, prompts)
    assert_close(unmasked, folders[family], [], prompts)


def test_a_mask_is_a_bias_that_no_score_makes_up_for(answers: dict[str, Answer]) -> None:
    """DeepSeek V3, which vLLM on CPUs and transformers answer differently at these sizes, masks or none."""
    assert same(answers["DeepseekV3"], answers["DeepseekV3 by hand"])
    assert not same(answers["DeepseekV3"], answers["DeepseekV3"]["later"][-1])


@pytest.mark.parametrize("family", sorted({*EXPERT_FAMILIES} - {"GptOss"}))
def test_a_mask_is_not_a_zero(answers: dict[str, Answer], family: str) -> None:
    _, zeroed, unmasked = answers[family]["later"]
    assert "error" not in zeroed["swap"]
    assert len({str(answer["logprobs"]) for answer in (answers[family], zeroed, unmasked)}) == 3


@pytest.mark.parametrize("family", EXPERT_FAMILIES)
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
