# SPDX-License-Identifier: Apache-2.0
"""A patch means the same where prompts are cached, a model drafts for the served one, or it is compiled, or adapters are
added to it.

Neurons, experts and masks at once: every layout answers as it does with a checkpoint that was edited by hand, at load
and after a swap, and as transformers does with the masked experts' logits at minus infinity.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.families import Case
from tests.engine.offline import Arm, run_arms
from tests.engine.reference import assert_close
from tests.engine.test_load import same
from tests.engine.test_lora import largest_difference
from tests.engine.test_masks import masks
from tests.models import EXPERTS, MIXED, WIDTH, edit_slices, patch_of
from vllm_surgery import ModelFolder, Patch, PatchSet
from vllm_surgery.offline.export_lora import export_lora
from vllm_surgery.patch.patch_set import SourcedPatch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Answer = dict[str, Any]
    Answers = dict[str, Answer]

pytestmark = pytest.mark.engine

CASE = Case(
    MIXED,
    neurons={(0, 0): 2.0, (0, 5): -1.0, (2, 3): 0.25, (2, WIDTH - 1): -8.0},
    experts={(1, 2): -8.0, (1, EXPERTS - 1): 2.0, (3, 0): 0.25, (3, 6): -1.0},
)
"""In both halves of the layers and of the experts. Gains whose inverses are exact, so that a copy edited by hand tells
what is right before a swap and after it."""
PATCH = CASE.patch
INVERSE = CASE.inverse
MASKED = [(1, 0), (1, 3), (3, 5)]
OTHERS = [(1, 3), (3, 1), (3, 4)]
"""Of other experts than those that are edited."""
MASKS, OTHER_MASKS = masks(MASKED), masks(OTHERS, "others")
ADAPTED = patch_of({(0, 64): -1.0, (2, 64): 3.0}, "adapted")
"""Of other neurons than the patch's, so that an adapter for them and the patch add up."""

PROMPTS = [
    [(7 * step + start) % 300 + 3 for step in range(length)] for start, length in ((5, 40), (111, 33), (200, 37))
]
"""Token ids, of more than one of the cache's blocks each, without the last token, which is never cached."""
TWICE = PROMPTS * 2
BLOCK = 32
"""Tokens; vLLM's own number for CPUs is as large as all that fits into these engines."""
NGRAMS = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 1, "prompt_lookup_max": 3}
LAYOUTS = ("prefix caching", "compiled", "adapters", "draft", "n-grams")
TOLERANCE = 1e-4
"""Of log-probabilities in float32 with an adapter, as in `test_lora`."""


def adapter(model: Path, folder: Path) -> str:
    patches = PatchSet((SourcedPatch("test", Patch.from_data(ADAPTED)),))
    return str(export_lora(patches, ModelFolder(model), folder).folder)


def first(answer: Answer) -> Answer:
    """To the first of each prompt, without an adapter."""
    return {key: answer[key][: len(PROMPTS)] for key in ("tokens", "logprobs")}


def second(answer: Answer) -> Answer:
    """To the second of each prompt, with an adapter."""
    return {key: answer[key][len(PROMPTS) :] for key in ("tokens", "logprobs")}


@pytest.fixture(scope="module")
def base(family_model: Callable[[str], Path]) -> Path:
    return family_model(MIXED)


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    return edit_slices(base, tmp_path_factory.mktemp("layouts") / "by_hand", CASE.slices)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory, base: Path, by_hand: Path) -> Answers:
    lora = adapter(base, tmp_path_factory.mktemp("layouts") / "adapter")
    how: dict[str, dict[str, Any]] = {
        "prefix caching": {"options": {"enable_prefix_caching": True, "block_size": BLOCK}, "prompts": TWICE},
        "compiled": {"options": {"enforce_eager": False}},
        "adapters": {
            "options": {"enable_lora": True, "max_loras": 2},
            "prompts": TWICE,
            "adapters": [None] * len(PROMPTS) + [lora] * len(PROMPTS),
            "experts_in_torch": True,
            "forget_kernels": False,  # Which are none that pack.
        },
        # The draft is the model itself, unpatched: as like the patched model as can be, down to its tensors' names.
        "draft": {
            "options": {"speculative_config": {"model": str(base), "num_speculative_tokens": 3}},
            "digest": True,
        },
        "n-grams": {"options": {"speculative_config": NGRAMS}},
    }
    later = [[], [PATCH], [PATCH, MASKS], [ADAPTED], [PATCH, ADAPTED], [PATCH, MASKS, ADAPTED]]
    alone = [[patch_of(CASE.neurons)], [patch_of({}, experts=CASE.experts)]]
    arms: dict[str, Arm] = {"plain": Arm(str(base), [], prompts=PROMPTS, later=[*later, *alone])}
    for name in LAYOUTS:
        common: dict[str, Any] = {"prompts": PROMPTS, "settings": {"mask_buffers": True}, **how[name]}
        later = [[], [PATCH], [PATCH, OTHER_MASKS]]
        arms[name] = Arm(str(base), [PATCH, MASKS], later=later, **common)
        arms[f"{name}, by hand"] = Arm(str(by_hand), [], later=[[INVERSE], [MASKS]], **common)
    for arm in arms.values():
        arm.options = {"dtype": "float32", **arm.options}
    return dict(zip(arms, run_arms(*arms.values()), strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_patched_equals_edited_by_hand(answers: Answers, layout: str) -> None:
    _, masked = answers[f"{layout}, by hand"]["later"]
    assert same(answers[layout], masked)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_swapped_out_and_in_equals_edited_by_hand(answers: Answers, layout: str) -> None:
    swapped_out, swapped_in, _ = answers[layout]["later"]
    taken_back, _ = answers[f"{layout}, by hand"]["later"]
    assert same(swapped_out, taken_back), swapped_out["swap"]
    assert same(swapped_in, answers[f"{layout}, by hand"]), swapped_in["swap"]
    assert len({str(state["logprobs"]) for state in (answers[layout], swapped_out, swapped_in)}) == 3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_mask_is_a_logit_of_minus_infinity(answers: Answers, by_hand: Path, layout: str) -> None:
    _, unmasked, others = answers[layout]["later"]
    for answer, masked in ((answers[layout], MASKED), (unmasked, []), (others, OTHERS)):
        assert_close(first(answer), by_hand, PROMPTS, masked=masked)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_changes_no_token(answers: Answers, layout: str) -> None:
    unpatched, patched, masked, *_ = answers["plain"]["later"]
    swapped_out, swapped_in, _ = answers[layout]["later"]
    for state, expected in ((answers[layout], masked), (swapped_out, unpatched), (swapped_in, patched)):
        assert first(state)["tokens"] == expected["tokens"]


def test_neurons_experts_and_masks_tell(answers: Answers) -> None:
    assert len({str(state["tokens"]) for state in answers["plain"]["later"]}) == len(answers["plain"]["later"])


def test_no_swap_leaves_what_was_cached(answers: Answers) -> None:
    """A prompt's blocks are found the second time it is asked; after a swap they aren't."""
    found = [0] * len(PROMPTS) + [BLOCK] * len(PROMPTS)
    for name in ("prefix caching", "prefix caching, by hand"):
        assert [state["cached"] for state in (answers[name], *answers[name]["later"])] == [found] * (
            1 + len(answers[name]["later"])
        )


def test_a_draft_is_never_edited(answers: Answers) -> None:
    """Nor masked, and what drafts does so by all that it computes with."""
    masked, by_hand = answers["draft"], answers["draft, by hand"]
    (untouched,) = {state["draft"] for state in (masked, *masked["later"], by_hand, *by_hand["later"])}
    assert untouched is not None
    swapped_out, swapped_in, others = masked["later"]
    taken_back, masked_by_hand = by_hand["later"]
    assert masked["digest"] == masked_by_hand["digest"]
    assert swapped_out["digest"] == taken_back["digest"]
    assert swapped_in["digest"] == by_hand["digest"]
    assert len({state["digest"] for state in (masked, swapped_out, swapped_in, others)}) == 4


def test_no_swap_costs_a_compilation(answers: Answers) -> None:
    compiled = answers["compiled"]
    assert {later["graphs"] for later in compiled["later"]} == {compiled["graphs"]}
    assert compiled["graphs"] > answers["plain"]["graphs"]


def test_an_adapter_is_added_to_what_is_patched(answers: Answers) -> None:
    """Requests with an adapter and without it, in one batch, while patches and masks come and go beneath them."""
    without, alone = answers["plain"]["later"][:3], answers["plain"]["later"][3:6]
    batches = [*answers["adapters"]["later"][:2], answers["adapters"]]
    for batch, unpatched, adapted in zip(batches, without, alone, strict=True):
        for served, expected in ((first(batch), unpatched), (second(batch), adapted)):
            assert served["tokens"] == expected["tokens"]
            assert largest_difference(served, expected) <= TOLERANCE
