# SPDX-License-Identifier: Apache-2.0
"""Experts swapped on a running engine == a fresh engine with that patch, bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.offline import Arm, run_arms
from tests.engine.test_load import same
from tests.models import patch_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Answers = dict[str, dict[str, Any]]

pytestmark = pytest.mark.engine

FIRST = patch_of({}, "first", experts={(0, 0): -1.0, (0, 1): 0.5, (1, 3): 0.0, (3, 7): -1.0})
SECOND = patch_of({}, "second", experts={(0, 1): -0.8, (1, 3): 2.0, (2, 5): 0.0})
BESIDE = patch_of({(1, 3): -1.0, (2, 100): 0.5}, "beside")
"""Neurons of the dense MLP that Gemma 4 has beside its experts."""
FAMILIES: dict[str, tuple[list[Any], list[Any]]] = {
    "Qwen3Moe": ([FIRST], [SECOND]),
    "Gemma4/experts": ([FIRST], [SECOND, BESIDE]),
}


@pytest.fixture(scope="module", params=FAMILIES)
def answers(request: pytest.FixtureRequest, family_model: Callable[[str], Path]) -> Answers:
    base, (first, second) = str(family_model(request.param)), FAMILIES[request.param]
    arms = {
        "unpatched": Arm(base, []),
        "second": Arm(base, second),
        "swapped": Arm(base, first, swaps=[second]),
        "swapped often": Arm(base, first, swaps=[*([second, first, [], first] * 50), second]),
        "swapped back": Arm(base, first, swaps=[second, []]),
    }
    return dict(zip(arms, run_arms(*arms.values()), strict=True))


@pytest.mark.parametrize(
    ("swapped", "fresh"), [("swapped", "second"), ("swapped often", "second"), ("swapped back", "unpatched")]
)
def test_swapped_equals_fresh(answers: Answers, swapped: str, fresh: str) -> None:
    assert answers["second"]["logprobs"] != answers["unpatched"]["logprobs"]
    assert not [report for report in answers[swapped]["swaps"] if "error" in report]
    assert same(answers[swapped], answers[fresh])


def test_experts_that_are_not_packed_again_are_noticed(family_model: Callable[[str], Path]) -> None:
    """What vLLM's own reload does on a CPU: wrong answers from then on. The swap must see it, and end the engine."""
    base = str(family_model("Qwen3Moe"))
    (answer,) = run_arms(Arm(base, swaps=[[FIRST]], forget_kernels=False, prompts=[]))
    (report,) = answer["swaps"]
    assert report["error"].startswith("MixedWeightsError: swap to first@")
    assert "doesn't answer as its weights say" in report["error"]


def test_a_part_that_vllm_does_not_take_stays_as_it_was(family_model: Callable[[str], Path]) -> None:
    """Whatever keeps vLLM from loading a layer's experts whole: nothing was written, so the engine goes on."""
    base = str(family_model("Qwen3Moe"))
    (answer,) = run_arms(Arm(base, [], later=[[FIRST], [SECOND]], hide=".up_proj."))
    for later in answer["later"]:
        assert later["swap"]["error"].startswith("SwapFailedError: swap to ")
        assert "vLLM loaded only part of RoutedExperts" in later["swap"]["error"]
        assert same(later, answer)
