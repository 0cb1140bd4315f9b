# SPDX-License-Identifier: Apache-2.0
"""vLLM's own LoRA with an exported adapter == the patched model, up to rounding; and one batch may hold both."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any, get_args

import pytest

from tests.engine.offline import PROMPTS, Arm, run_arms
from tests.models import patch_of
from vllm_surgery import ModelFolder, Patch, PatchSet
from vllm_surgery.offline.export_lora import RANKS, export_lora
from vllm_surgery.patch.patch_set import SourcedPatch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Answer = dict[str, Any]

pytestmark = pytest.mark.engine

GAINS = {(29, 1460): 5.0, (29, 545): -1.0, (29, 0): 0.0, (10, 123): -0.8, (3, 7): 0.0, (0, 0): 0.5}
"""Every op; layers with one edit and with three; the first layer and the last."""
QUESTIONS = ["List the moons of Jupiter.", "Name every country in Africa, one per line."]
TOLERANCE = 1e-4
"""Of log-probabilities in float32: several times what was measured, which is 2.7e-5 with the adapter. Without it the
same batch is off by 2.8e-5, from the batch's size alone."""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory, demo_model: Path) -> dict[str, Answer]:
    """The unpatched model and the patched one, a question at a time; and one batch of every question in both ways."""
    patch = patch_of(GAINS)
    patches = PatchSet((SourcedPatch("test", Patch.from_data(patch)),))
    done = export_lora(patches, ModelFolder(demo_model), tmp_path_factory.mktemp("lora") / "adapter")
    # Two places for one adapter, as its card says: with one, vLLM 0.32 on CPU would give it to every request.
    lora = {"enable_lora": True, "max_lora_rank": done.max_lora_rank, "max_loras": 2}
    both_ways = [question for question in QUESTIONS for _ in range(2)]
    arms = {
        "unpatched": Arm(str(demo_model), prompts=QUESTIONS),
        "patched": Arm(str(demo_model), [patch], prompts=QUESTIONS),
        "batch": Arm(
            str(demo_model), options=lora, prompts=both_ways, adapters=[None, str(done.folder)] * len(QUESTIONS)
        ),
    }
    for arm in arms.values():
        arm.options |= {"dtype": "float32"}
        arm.max_tokens = 32
    found = dict(zip(arms, run_arms(*arms.values()), strict=True))
    return {**found, "without": _every_second(found["batch"], 0), "with": _every_second(found["batch"], 1)}


def _every_second(answer: Answer, first: int) -> Answer:
    return {key: answer[key][first::2] for key in ("tokens", "logprobs")}


def largest_difference(one: Answer, other: Answer) -> float:
    pairs = zip(chain(*chain(*one["logprobs"])), chain(*chain(*other["logprobs"])), strict=True)
    return max(abs(chance - other_chance) for (_, chance), (_, other_chance) in pairs)


@pytest.mark.parametrize(("in_the_batch", "reference"), [("with", "patched"), ("without", "unpatched")])
def test_a_request_is_answered_as_by_its_own_model(
    answers: dict[str, Answer], in_the_batch: str, reference: str
) -> None:
    assert answers[in_the_batch]["tokens"] == answers[reference]["tokens"]
    difference = largest_difference(answers[in_the_batch], answers[reference])
    print(f"{in_the_batch} the adapter, log-probabilities differ by {difference:.1e} at most")
    assert difference <= TOLERANCE


def test_the_patch_changes_every_answer(answers: dict[str, Answer]) -> None:
    pairs = zip(answers["patched"]["tokens"], answers["unpatched"]["tokens"], strict=True)
    assert all(patched != unpatched for patched, unpatched in pairs)


SHARED = {(0, 0): 5.0, (0, 95): -1.0, (1, 9): 0.0, (3, 7): -3.0}
"""Neurons of shared experts."""


@pytest.fixture(scope="module")
def of_shared_experts(
    tmp_path_factory: pytest.TempPathFactory, family_model: Callable[[str], Path]
) -> dict[str, Answer]:
    patch, model = patch_of({}, shared=SHARED), family_model("Qwen2Moe")
    patches = PatchSet((SourcedPatch("test", Patch.from_data(patch)),))
    done = export_lora(patches, ModelFolder(model), tmp_path_factory.mktemp("shared") / "adapter")
    lora = {"enable_lora": True, "max_lora_rank": done.max_lora_rank, "max_loras": 2}
    whose = [None, str(done.folder)] * len(PROMPTS)
    both = Arm(str(model), options=lora, adapters=whose, experts_in_torch=True, forget_kernels=False)
    arms = {"unpatched": Arm(str(model)), "patched": Arm(str(model), [patch]), "batch": both}
    both.prompts = [prompt for prompt in PROMPTS for _ in range(2)]
    for arm in arms.values():
        arm.options |= {"dtype": "float32"}
    found = dict(zip(arms, run_arms(*arms.values()), strict=True))
    return {**found, "without": _every_second(found["batch"], 0), "with": _every_second(found["batch"], 1)}


@pytest.mark.parametrize(("in_the_batch", "reference"), [("with", "patched"), ("without", "unpatched")])
def test_an_adapter_holds_neurons_of_shared_experts(
    of_shared_experts: dict[str, Answer], in_the_batch: str, reference: str
) -> None:
    assert of_shared_experts["patched"]["tokens"] != of_shared_experts["unpatched"]["tokens"]
    assert of_shared_experts[in_the_batch]["tokens"] == of_shared_experts[reference]["tokens"]
    assert largest_difference(of_shared_experts[in_the_batch], of_shared_experts[reference]) <= TOLERANCE


def test_these_are_the_ranks_that_vllm_allows() -> None:
    from vllm.config.lora import MaxLoRARanks

    assert get_args(MaxLoRARanks) == RANKS
