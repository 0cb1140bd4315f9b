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
    "Gemma4": ([FIRST], [SECOND, BESIDE]),
}
TWO_RANKS = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}


def arms_of(base: str, first: list[Any], second: list[Any], **options: Any) -> dict[str, Arm]:
    back_and_forth = [second, first, [], first] * 6
    return {
        "unpatched": Arm(base, [], options),
        "second": Arm(base, second, options),
        "swapped": Arm(base, first, options, swaps=[second]),
        "swapped often": Arm(base, first, options, swaps=[*back_and_forth, second]),
        "swapped back": Arm(base, first, options, swaps=[second, []]),
    }


def run(arms: dict[str, Arm], **environment: str) -> Answers:
    return dict(zip(arms, run_arms(*arms.values(), **environment), strict=True))


def check(answers: Answers) -> None:
    assert answers["second"]["logprobs"] != answers["unpatched"]["logprobs"]
    for swapped, fresh in (("swapped", "second"), ("swapped often", "second"), ("swapped back", "unpatched")):
        assert not [report for report in answers[swapped]["swaps"] if "error" in report]
        assert same(answers[swapped], answers[fresh]), swapped


@pytest.fixture(scope="module", params=FAMILIES)
def answers(request: pytest.FixtureRequest, family_model: Callable[[str], Path]) -> Answers:
    base = str(family_model(request.param))
    return run(arms_of(base, *FAMILIES[request.param]))


def test_swapped_equals_fresh(answers: Answers) -> None:
    check(answers)


@pytest.mark.parametrize("family", FAMILIES)
def test_two_ranks_swap_alike(family: str, family_model: Callable[[str], Path]) -> None:
    base, (first, second) = str(family_model(family)), FAMILIES[family]
    arms = arms_of(base, first, second, **TWO_RANKS)
    del arms["swapped often"]
    answers = run(arms, VLLM_ENABLE_V1_MULTIPROCESSING="1")
    answers["swapped often"] = answers["swapped"]
    check(answers)


def test_experts_that_are_not_packed_again_are_noticed(family_model: Callable[[str], Path]) -> None:
    """What vLLM's own reload does on a CPU: wrong answers from then on. The swap must see it, and end the engine."""
    base = str(family_model("Qwen3Moe"))
    (answer,) = run_arms(Arm(base, swaps=[[FIRST]], forget_kernels=False, prompts=[]))
    (report,) = answer["swaps"]
    assert report["error"].startswith("MixedWeightsError: swap to first@")
    assert "doesn't answer as its weights say" in report["error"]
