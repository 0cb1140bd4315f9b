# SPDX-License-Identifier: Apache-2.0
"""A patch means the same where a model drafts for the served one, or it is compiled, or adapters are added to it.

Every layout answers as it does with a checkpoint that was edited by hand, at load and after a swap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.offline import PROMPTS, Arm, run_arms
from tests.engine.reference import assert_close
from tests.engine.test_load import same
from tests.engine.test_lora import largest_difference
from tests.engine.test_masks import masks
from tests.models import WIDTH, edit_by_hand, patch_of
from vllm_surgery import ModelFolder, Patch, PatchSet
from vllm_surgery.export_lora import export_lora
from vllm_surgery.stack import SourcedPatch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Answer = dict[str, Any]
    Answers = dict[str, Answer]

pytestmark = pytest.mark.engine

GAINS = {(0, 0): 2.0, (0, 5): -1.0, (1, 3): 0.25, (1, WIDTH - 1): -8.0}
"""Whose inverses are exact, so that a copy edited by hand tells what is right before a swap and after it."""
PATCH = patch_of(GAINS, "patch")
INVERSE = patch_of({unit: 1 / gain for unit, gain in GAINS.items()}, "inverse")
OTHER = patch_of({(0, 0): -1.0, (1, 7): 0.0}, "other")
ADAPTED = patch_of({(0, 64): -1.0, (1, 64): 3.0}, "adapted")
"""Of other neurons than the patches', so that an adapter for them and a patch add up."""

FIRST_MASKS = [(0, 0), (0, 3), (1, 5)]
OTHER_MASKS = [(0, 3), (1, 1)]

NGRAMS = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 1, "prompt_lookup_max": 3}
WITH_LORA = {"enable_lora": True, "max_loras": 2}
COMPILED = {"enforce_eager": False}
LAYOUTS = ("draft", "n-grams", "compiled")
TOLERANCE = 1e-4
"""Of log-probabilities in float32 with an adapter, as in `test_lora`."""


def adapter(model: Path, folder: Path) -> str:
    patches = PatchSet((SourcedPatch("test", Patch.from_data(ADAPTED)),))
    return str(export_lora(patches, ModelFolder(model), folder).folder)


@pytest.fixture(scope="module")
def experts(family_model: Callable[[str], Path]) -> Path:
    return family_model("Qwen3Moe/two layers")


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory, family_model: Callable[[str], Path], experts: Path) -> Answers:
    work, base = tmp_path_factory.mktemp("layouts"), family_model("Llama/two layers")
    by_hand = edit_by_hand(base, work / "by_hand", GAINS)
    # The draft is the model itself, unpatched: as like the patched model as can be, down to its tensors' names.
    draft = {"model": str(base), "num_speculative_tokens": 3}
    options: dict[str, dict[str, Any]] = {
        "draft": {"speculative_config": draft, "enable_prefix_caching": True},
        "n-grams": {"speculative_config": NGRAMS},
        "compiled": COMPILED,
    }
    arms: dict[str, Arm] = {
        "plain": Arm(str(base), [], later=[[PATCH], [ADAPTED], [PATCH, ADAPTED], [OTHER], [OTHER, ADAPTED]]),
        "adapters": Arm(
            str(base),
            [PATCH],
            WITH_LORA,
            prompts=[prompt for prompt in PROMPTS for _ in range(2)],
            adapters=[None, adapter(base, work / "adapter")] * len(PROMPTS),
            later=[[], [OTHER]],
        ),
        "masks": Arm(
            str(experts),
            [],
            COMPILED,
            settings={"mask_buffers": True},
            max_tokens=6,
            later=[[masks(FIRST_MASKS)], [masks(OTHER_MASKS)], []],
        ),
    }
    for name in LAYOUTS:
        digest = name == "draft"
        arms[name] = Arm(str(base), [PATCH], options[name], digest=digest, later=[[], [PATCH]])
        arms[f"{name}, by hand"] = Arm(str(by_hand), [], options[name], digest=digest, later=[[INVERSE]])
    for arm in arms.values():
        arm.options = {"dtype": "float32", **arm.options}
    return dict(zip(arms, run_arms(*arms.values()), strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_patched_equals_edited_by_hand(answers: Answers, layout: str) -> None:
    assert same(answers[layout], answers[f"{layout}, by hand"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_swapped_out_and_in_equals_edited_by_hand(answers: Answers, layout: str) -> None:
    swapped_out, swapped_in = answers[layout]["later"]
    (taken_back,) = answers[f"{layout}, by hand"]["later"]
    assert not same(swapped_out, answers[layout]), swapped_out["swap"]
    assert same(swapped_out, taken_back)
    assert same(swapped_in, answers[layout])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_changes_no_token(answers: Answers, layout: str) -> None:
    patched, *_ = answers["plain"]["later"]
    swapped_out, _ = answers[layout]["later"]
    assert answers[layout]["tokens"] == patched["tokens"]
    assert swapped_out["tokens"] == answers["plain"]["tokens"]


def test_a_draft_is_never_edited(answers: Answers) -> None:
    patched, by_hand = answers["draft"], answers["draft, by hand"]
    (untouched,) = {state["draft"] for state in (patched, *patched["later"], by_hand, *by_hand["later"])}
    assert untouched is not None
    swapped_out, swapped_in = patched["later"]
    assert patched["digest"] == swapped_in["digest"] == by_hand["digest"] != swapped_out["digest"]


def test_no_swap_costs_a_compilation(answers: Answers) -> None:
    for name in ("compiled", "masks"):
        assert {later["graphs"] for later in answers[name]["later"]} == {answers[name]["graphs"]}
    assert answers["compiled"]["graphs"] > answers["plain"]["graphs"]


def test_masks_are_swapped_where_the_model_is_compiled(answers: Answers, experts: Path) -> None:
    first, others, none = answers["masks"]["later"]
    assert not [later["swap"] for later in (first, others, none) if "error" in later["swap"]]
    assert_close(first, experts, PROMPTS, masked=FIRST_MASKS)
    assert_close(others, experts, PROMPTS, masked=OTHER_MASKS)
    assert_close(none, experts, PROMPTS)


def test_an_adapter_is_added_to_what_is_patched(answers: Answers) -> None:
    """Requests with an adapter and without it, in one batch, while patches come and go beneath them."""
    patched, adapted, both, other, other_and_adapted = answers["plain"]["later"]
    at_load, (swapped_out, swapped) = answers["adapters"], answers["adapters"]["later"]
    for batch, without, with_adapter in (
        (at_load, patched, both),
        (swapped_out, answers["plain"], adapted),
        (swapped, other, other_and_adapted),
    ):
        for first, expected in enumerate((without, with_adapter)):
            served = {key: batch[key][first::2] for key in ("tokens", "logprobs")}
            assert served["tokens"] == expected["tokens"]
            assert largest_difference(served, expected) <= TOLERANCE
    assert len({str(state["tokens"]) for state in (answers["plain"], patched, adapted, both, other)}) == 5
