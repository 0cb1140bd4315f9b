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
from tests.engine.families import Case, case_of
from tests.engine.offline import PROMPTS, Arm, run_arms
from tests.engine.reference import assert_close
from tests.engine.test_layouts import MASKED, MASKS, OTHER_MASKS, OTHERS
from tests.engine.test_load import same
from tests.engine.test_swap import STRANGER, random_swaps
from tests.models import EXPERTS, edit_slices, patch_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    Answers = dict[str, dict[str, Any]]

pytestmark = pytest.mark.engine

MIXED = test_layouts.CASE
BESIDE = Case("Gemma4/experts", neurons={(1, 3): -1.0, (2, 100): 0.5}, experts={(0, 1): -8.0, (2, EXPERTS - 1): 2.0})
"""Neurons of the dense MLP that Gemma 4 has beside its experts."""
ZERO = patch_of({}, "zero", experts={(1, 0): -1.0, (1, 1): 0.5, (3, 3): 0.0})

MP: dict[str, Any] = {"dtype": "float32", "distributed_executor_backend": "mp"}
TP: dict[str, Any] = {**MP, "tensor_parallel_size": 2}
EP: dict[str, Any] = {**TP, "enable_expert_parallel": True}
# Traced by torch once, but run as it is: what is compiled is not what counts here.
PP: dict[str, Any] = {
    **MP,
    "pipeline_parallel_size": 2,
    "enforce_eager": False,
    "compilation_config": {"mode": 2, "backend": "eager"},
}

LAYOUTS: dict[str, tuple[Case, dict[str, Any], list[Any]]] = {
    "TP 2": (MIXED, TP, [[ZERO], [], *random_swaps(20, 3, layers=(0, 2)), [ZERO]]),
    "TP 2, neurons beside experts": (BESIDE, TP, [[ZERO]]),
    "EP 2": (MIXED, EP, [[ZERO]]),
    "PP 2": (MIXED, PP, [[ZERO]]),
}
"""What is patched, vLLM's options, and swaps between."""
GPT_OSS = case_of("GptOss")


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory, family_model: Callable[[str], Path]) -> Mapping[str, Path]:
    """The checkpoints that were edited by hand, by family."""
    work = tmp_path_factory.mktemp("two_ranks")
    return {
        case.family: edit_slices(family_model(case.family), work / case.family, case.slices)
        for case in (MIXED, BESIDE, GPT_OSS)
    }


@pytest.fixture(scope="module")
def answers(by_hand: Mapping[str, Path], family_model: Callable[[str], Path]) -> Answers:
    arms: dict[str, Arm] = {}
    for name, (case, options, between) in LAYOUTS.items():
        base, edited = str(family_model(case.family)), str(by_hand[case.family])
        later = [[STRANGER], [case.patch], [case.patch, OTHER_MASKS]]
        arms[name] = Arm(base, [case.patch, MASKS], options, ask_before=True, swaps=[*between, []], later=later)
        arms[f"{name}, by hand"] = Arm(edited, [], options, later=[[case.inverse], [MASKS]])
    arms["GPT-OSS"] = Arm(str(family_model("GptOss")), [GPT_OSS.patch], TP)
    arms["GPT-OSS, by hand"] = Arm(str(by_hand["GptOss"]), options=TP)
    for name, arm in arms.items():
        # Two ranks wait for each other by turning in circles, so that every token costs much on few cores.
        arm.own_experts, arm.prompts, arm.max_tokens = True, PROMPTS[:2], 5
        arm.settings = {"mask_buffers": name.startswith("PP 2")}
    found = run_arms(*arms.values(), VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS="1")
    return dict(zip(arms, found, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_patched_equals_edited_by_hand(answers: Answers, layout: str) -> None:
    _, masked = answers[f"{layout}, by hand"]["later"]
    assert same(answers[layout]["before"], masked)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_swapped_out_and_in_equals_edited_by_hand(answers: Answers, layout: str) -> None:
    refused, swapped_in, _ = answers[layout]["later"]
    taken_back, _ = answers[f"{layout}, by hand"]["later"]
    assert not [report for report in answers[layout]["swaps"] if "error" in report]
    assert not same(answers[layout], swapped_in)
    assert same(answers[layout], taken_back)
    assert "out of range" in refused["swap"]["error"]
    assert same(refused, answers[layout])
    assert same(swapped_in, answers[f"{layout}, by hand"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_mask_is_a_logit_of_minus_infinity(answers: Answers, by_hand: Mapping[str, Path], layout: str) -> None:
    at_load, (_, unmasked, others) = answers[layout]["before"], answers[layout]["later"]
    folder = by_hand[LAYOUTS[layout][0].family]
    for answer, masked in ((at_load, MASKED), (unmasked, []), (others, OTHERS)):
        assert_close(answer, folder, PROMPTS[:2], masked=masked)
    assert len({str(answer["logprobs"]) for answer in (at_load, unmasked, others)}) == 3


def test_gpt_oss_is_patched_at_load(answers: Answers) -> None:
    """It has most to get wrong: each rank holds a part of every expert, and one of them adds the bias."""
    assert same(answers["GPT-OSS"], answers["GPT-OSS, by hand"])
    units = [report["units"] for report in answers["GPT-OSS"]["reports"]]
    assert units == [len(GPT_OSS.experts)] * 2


def test_every_rank_tells_what_it_serves(answers: Answers) -> None:
    for layout in LAYOUTS:
        first, second = answers[layout]["reports"]
        assert (first["id"], first["epoch"]) == (second["id"], second["epoch"])
