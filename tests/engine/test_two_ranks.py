# SPDX-License-Identifier: Apache-2.0
"""A model over two ranks, served with a patch == served from a checkpoint edited by hand over two ranks, bit for bit.

By tensors (TP 2), by layers (PP 2), and by experts (EP with TP 2). vLLM 0.32 has two faults here on CPUs, with this
package or without it. Its worker makes the place for what an earlier stage hands over only when it warms up, which it
leaves out with --enforce-eager: so stages are compiled here. And its kernel for experts reads past the rank's own, a
segmentation fault: so that kernel is mended here (`own_experts`), and expert parallelism is tested all but for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.engine import test_layouts
from tests.engine.families import case_of
from tests.engine.offline import PROMPTS, Arm, run_arms
from tests.engine.reference import assert_close
from tests.engine.test_load import same
from tests.engine.test_masks import MASKED, OTHERS, masks
from tests.engine.test_swap import STRANGER, random_swaps
from tests.models import down, edit_slices, patch_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Answers = dict[str, dict[str, Any]]

pytestmark = pytest.mark.engine

EXPERTS = {(0, 1): -8.0, (1, 3): 2.0, (2, 5): 0.25, (3, 7): -1.0}
"""Of both halves of the experts. These gains, and those below, have exact inverses."""
NEURONS = {(1, 3): -1.0, (2, 100): 0.5}
"""Of the dense MLP that Gemma 4 has beside its experts."""
ZERO = patch_of({}, "zero", experts={(0, 0): -1.0, (0, 1): 0.5, (1, 3): 0.0})
DENSE = {(0, 0): 2.0, (3, 9): -1.0, (7, 100): 0.25}

MP: dict[str, Any] = {"dtype": "float32", "distributed_executor_backend": "mp"}
TP: dict[str, Any] = {**MP, "tensor_parallel_size": 2}
EP: dict[str, Any] = {**TP, "enable_expert_parallel": True}
# Traced by torch, but run as it is: what is compiled is not what counts here.
PP: dict[str, Any] = {
    **MP,
    "pipeline_parallel_size": 2,
    "enforce_eager": False,
    "compilation_config": {"backend": "eager"},
}


def slices(family: str, neurons: dict[tuple[int, int], float], experts: dict[tuple[int, int], float]) -> Any:
    named = {(down(layer), 1, index): gain for (layer, index), gain in neurons.items()}
    for (layer, index), gain in experts.items():
        if family == "Gemma4/experts":
            named[f"model.layers.{layer}.router.per_expert_scale", 0, index] = gain
        else:
            named[f"model.layers.{layer}.mlp.experts.{index}.down_proj.weight", None, 0] = gain
    return named


LAYOUTS: dict[str, tuple[str, dict[str, Any], dict[Any, float], dict[Any, float], list[Any]]] = {
    "TP 2, dense": ("Llama", TP, DENSE, {}, random_swaps(20, 3)),
    "TP 2, experts": ("Qwen3Moe", TP, {}, EXPERTS, [[ZERO], [], [ZERO]]),
    "TP 2, neurons beside experts": ("Gemma4/experts", TP, NEURONS, EXPERTS, [[ZERO]]),
    "EP 2, experts": ("Qwen3Moe", EP, {}, EXPERTS, [[ZERO]]),
    "PP 2, dense": ("Llama/two layers", PP, test_layouts.GAINS, {}, [[test_layouts.OTHER]]),
}
"""Family, vLLM's options, gains of neurons and of experts, and swaps between."""
GPT_OSS = case_of("GptOss")
MASKING = ("TP 2, experts", "EP 2, experts")


def inverse(gains: dict[Any, float]) -> dict[Any, float]:
    return {unit: 1 / gain for unit, gain in gains.items()}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory, family_model: Callable[[str], Path]) -> Answers:
    work = tmp_path_factory.mktemp("two_ranks")
    arms: dict[str, Arm] = {}
    for name, (family, options, neurons, experts, between) in LAYOUTS.items():
        patch, taken_back = patch_of(neurons, experts=experts), patch_of(inverse(neurons), experts=inverse(experts))
        base = family_model(family)
        by_hand = edit_slices(base, work / name, slices(family, neurons, experts))
        masked = [[masks(MASKED)], [masks(OTHERS, "others")]] if name in MASKING else []
        later = [[STRANGER], [patch], *masked]
        arms[name] = Arm(str(base), [patch], options, ask_before=True, swaps=[*between, []], later=later)
        arms[f"{name}, by hand"] = Arm(str(by_hand), [], options, later=[[taken_back]])
    gpt_oss = family_model("GptOss")
    by_hand = edit_slices(gpt_oss, work / "GptOss", GPT_OSS.slices)
    arms["GPT-OSS"] = Arm(str(gpt_oss), [GPT_OSS.patch], TP)
    arms["GPT-OSS, by hand"] = Arm(str(by_hand), options=TP)
    for arm in arms.values():
        # Two ranks wait for each other by turning in circles, so that every token costs much on few cores.
        arm.forked, arm.own_experts, arm.prompts, arm.max_tokens = True, True, PROMPTS[:2], 5
    found = run_arms(*arms.values(), VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS="1")
    return dict(zip(arms, found, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_patched_equals_edited_by_hand(answers: Answers, layout: str) -> None:
    assert same(answers[layout]["before"], answers[f"{layout}, by hand"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_swapped_out_and_in_equals_edited_by_hand(answers: Answers, layout: str) -> None:
    refused, swapped_in, *_ = answers[layout]["later"]
    (taken_back,) = answers[f"{layout}, by hand"]["later"]
    assert not [report for report in answers[layout]["swaps"] if "error" in report]
    assert not same(answers[layout], swapped_in)
    assert same(answers[layout], taken_back)
    assert "out of range" in refused["swap"]["error"]
    assert same(refused, answers[layout])
    assert same(swapped_in, answers[layout]["before"])


@pytest.mark.parametrize("layout", MASKING)
def test_masks_are_the_same_on_both_ranks(answers: Answers, family_model: Callable[[str], Path], layout: str) -> None:
    *_, masked, others = answers[layout]["later"]
    model = family_model(LAYOUTS[layout][0])
    assert_close(answers[layout], model, PROMPTS[:2])
    assert_close(masked, model, PROMPTS[:2], masked=MASKED)
    assert_close(others, model, PROMPTS[:2], masked=OTHERS)


def test_gpt_oss_is_patched_at_load(answers: Answers) -> None:
    """It has most to get wrong: each rank holds a part of every expert, and one of them adds the bias."""
    assert same(answers["GPT-OSS"], answers["GPT-OSS, by hand"])
    units = [report["units"] for report in answers["GPT-OSS"]["reports"]]
    assert units == [len(GPT_OSS.experts)] * 2


def test_every_rank_tells_what_it_serves(answers: Answers) -> None:
    for layout in LAYOUTS:
        first, second = answers[layout]["reports"]
        assert (first["id"], first["epoch"]) == (second["id"], second["epoch"])
