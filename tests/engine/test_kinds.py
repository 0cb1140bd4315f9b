# SPDX-License-Identifier: Apache-2.0
"""Kinds of checkpoints: served with a patch == served from one whose numbers, codes and scales were edited by hand.

Here is one for each kernel and naming that vLLM's CPU backend has for them. What all kinds stand for is tested without
it, in `tests/formats`.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from tests.engine.kernels import NEED_AVX_512, PACKED_INTEGERS, has_op, skip_without_op
from tests.engine.offline import Arm, run_arms
from tests.engine.test_load import same
from tests.models import WIDTH, edit_by_hand, edit_slices, make_model, patch_of
from tests.quantised import kinds, make_served, name, stored

if TYPE_CHECKING:
    from pathlib import Path

    from tests.quantised import Kind, Tensors

    Gains = dict[tuple[int, int], float]

pytestmark = pytest.mark.engine

MODEL = "Llama/two layers"
GROUP = 32  # The smallest that vLLM takes.
QUANTISED = {
    word: kinds(GROUP)[word]
    for word in (
        "fp8 per channel",
        "int8 per channel",
        "int8 per tensor",
        "int4 in groups",
        "int4 with zero points",
        "gptq",
        "awq",
    )
}
ONLINE = {"online fp8 per channel": "fp8_per_channel"}
"""What vLLM makes of a bf16 checkpoint while it loads it, and its word for that."""
PLAIN = {"bf16": torch.bfloat16, "fp16": torch.float16}
EXPERTS = {f"{word} experts": dtype for word, dtype in PLAIN.items()}
KINDS = (*PLAIN, *EXPERTS, *QUANTISED, *ONLINE)
GAINS: Gains = {(0, 0): -1.0, (0, 1): 0.5, (0, 40): 0.0, (1, 7): 3.0, (1, WIDTH - 1): -0.7}
SIGNS: Gains = {(0, 0): -1.0, (0, 40): 0.0, (1, WIDTH - 1): -1.0}
"""What a kind can hold whose projections have one scale each."""
EXPERT_GAINS: Gains = {(0, 0): -1.0, (0, 3): 0.0, (1, 5): 0.5, (1, 7): -0.7}
OTHER = patch_of({(1, 3): -1.0}, "other")
MASK = {"version": 1, "name": "other", "edits": [{"op": "mask", "experts": {"1": [2]}}]}


def gains_of(word: str) -> Gains:
    return SIGNS if word in QUANTISED and QUANTISED[word].out_axis is None else GAINS


def edited(tensors: Tensors, kind: Kind, gains: Gains) -> Tensors:
    """The checkpoint that the patch should come to."""
    for (layer, index), gain in gains.items():
        codes = tensors.get(name(layer, "down", "weight"))
        signs_apart = codes is not None and (codes.dtype == torch.float8_e4m3fn or kind.out_axis is None)
        if codes is not None and signs_apart:
            codes[:, index] = (codes[:, index].float() * (gain / abs(gain) if gain else 0.0)).to(codes.dtype)
        if kind.out_axis is not None:
            scale = tensors[name(layer, "up", kind.scale)].select(kind.out_axis, index)
            scale.copy_((scale.float() * ((abs(gain) or 1.0) if signs_apart else gain)).to(scale.dtype))
    return tensors


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """For each kind that this machine can serve: with the patch, and by hand. One process makes all."""
    folder, served = tmp_path_factory.mktemp("kinds"), [word for word in KINDS if _is_served(word)]
    arms = [arm for word in served for arm in _arms(folder / word.replace(" ", "-"), word)]
    given = iter(run_arms(*arms))
    return {word: [next(given), next(given)] for word in served}


@pytest.fixture(autouse=True)
def _skip_without_kernel(request: pytest.FixtureRequest) -> None:
    if request.node.callspec.params["word"] in NEED_AVX_512:
        skip_without_op(PACKED_INTEGERS)


def _is_served(word: str) -> bool:
    return word not in NEED_AVX_512 or has_op(PACKED_INTEGERS)


def _arms(model: Path, word: str) -> list[Arm]:
    if word in EXPERTS:
        return _expert_arms(model, EXPERTS[word])
    if word in QUANTISED:
        by_hand = shutil.copytree(make_served(model, QUANTISED[word], MODEL), beside(model))
        save_file(
            edited(stored(model), QUANTISED[word], gains_of(word)), by_hand / "model.safetensors", {"format": "pt"}
        )
    else:
        by_hand = edit_by_hand(make_model(model, MODEL, PLAIN.get(word, torch.bfloat16)), beside(model), GAINS)
    how: dict[str, Any] = {"max_tokens": 6, "options": {"quantization": ONLINE[word]} if word in ONLINE else {}}
    patch = patch_of(gains_of(word))
    return [
        Arm(str(model), [patch], later=[[OTHER], [patch]] if word in PLAIN else [], **how),
        Arm(str(by_hand), **how),
    ]


def _expert_arms(model: Path, dtype: torch.dtype) -> list[Arm]:
    slices: dict[tuple[str, int | None, int], float] = {
        (f"model.layers.{layer}.mlp.experts.{index}.down_proj.weight", None, 0): gain
        for (layer, index), gain in EXPERT_GAINS.items()
    }
    by_hand = edit_slices(make_model(model, "Qwen3Moe/two layers", dtype), beside(model), slices)
    patch = patch_of({}, experts=EXPERT_GAINS)
    return [Arm(str(model), [patch], max_tokens=6, later=[[MASK], [patch]]), Arm(str(by_hand), max_tokens=6)]


def beside(model: Path) -> Path:
    """Where the copy lies that is edited by hand."""
    return model.with_name(f"{model.name}-by-hand")


@pytest.mark.parametrize("word", KINDS)
def test_served_with_a_patch_is_served_from_a_checkpoint_edited_by_hand(
    answers: dict[str, list[dict[str, Any]]], word: str
) -> None:
    patched, by_hand = answers[word]

    assert same(patched, by_hand)


@pytest.mark.parametrize("word", [*PLAIN, *EXPERTS])
def test_swapped_out_and_in_equals_a_fresh_start(answers: dict[str, list[dict[str, Any]]], word: str) -> None:
    patched, _ = answers[word]
    other, again = patched["later"]

    assert not same(other, patched), other["swap"]
    assert same(again, patched), again["swap"]


@pytest.mark.parametrize("word", ONLINE)
def test_what_is_to_be_quantised_while_it_is_loaded_is_quantised(
    answers: dict[str, list[dict[str, Any]]], word: str
) -> None:
    assert not same(answers[word][0], answers["bf16"][0])


@pytest.mark.parametrize("word", [*QUANTISED, *ONLINE])
def test_a_swap_is_refused_with_the_reason(answers: dict[str, list[dict[str, Any]]], word: str) -> None:
    (report,) = answers[word][0]["reports"]

    assert "the model is quantised" in str(report)
