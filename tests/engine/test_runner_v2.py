# SPDX-License-Identifier: Apache-2.0
"""Patches in the weights on vLLM's second model runner, which every GPU has: all as on the first.

Its kernels run here by Triton's interpreter, on tiny models. What this can't show is a CUDA graph.
`tests/engine/requests/test_runner_v2.py` has slots.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.offline import Arm, run_arms
from tests.engine.requests.test_runner_v2 import INTERPRETER
from tests.engine.test_load import same
from tests.models import patch_of
from vllm_surgery import Patch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Answers = dict[str, dict[str, Any]]

pytestmark = pytest.mark.engine

INTERPRETED = {
    "TRITON_INTERPRET": "1",
    "PYTHONPATH": os.pathsep.join([str(INTERPRETER), os.environ.get("PYTHONPATH", "")]),
}
FIRST = patch_of({(0, 0): -1.0, (1, 40): 0.5}, "first")
SECOND = patch_of({(0, 0): 2.0, (1, 7): 0.0}, "second")
EXPERTS = patch_of({}, "experts", experts={(0, 0): -1.0, (1, 3): 0.5})
MASKS = {
    "version": 1,
    "name": "masks",
    "edits": [
        {"op": "mask", "experts": {"0": [1], "1": [2, 5]}},
        {"op": "scale", "factor": 2.0, "experts": {"0": [0]}},
    ],
}
KINDS = {"Llama/two layers": (FIRST, SECOND), "Qwen3Moe/two layers": (EXPERTS, MASKS)}
BOTH = ("V1", "V2")
TOKENS = 4


@pytest.fixture(scope="module", params=KINDS)
def answers(request: pytest.FixtureRequest, family_model: Callable[[str], Path]) -> Answers:
    """By runner and patch: of engines that were started so, and of one that swapped."""
    model, (first, second) = str(family_model(request.param)), KINDS[request.param]
    more: dict[str, Any] = {"prompts": [[5, 17, 33, 90], [200, 41, 7]], "max_tokens": TOKENS}
    arms = {
        "swapped": Arm(model, [first], later=[[second], [], [first]], **more),
        "second": Arm(model, [second], **more),
        "none": Arm(model, [], **more),
    }
    found: Answers = {}
    for runner, environment in zip(BOTH, ({}, INTERPRETED), strict=True):
        answered = run_arms(*arms.values(), **environment)
        found.update({f"{runner} {name}": answer for name, answer in zip(arms, answered, strict=True)})
        for place, name in enumerate(("swapped to second", "swapped to none", "swapped back")):
            found[f"{runner} {name}"] = found[f"{runner} swapped"]["later"][place]
    return found


def test_they_are_the_two_runners(answers: Answers) -> None:
    assert ["Using V2 Model Runner" in answers[f"{runner} swapped"]["log"] for runner in BOTH] == [False, True]


@pytest.mark.parametrize("name", ["swapped", "second", "none", "swapped to second", "swapped to none", "swapped back"])
def test_the_second_answers_as_the_first(answers: Answers, name: str) -> None:
    one, other = answers[f"V1 {name}"], answers[f"V2 {name}"]
    assert one["tokens"] == other["tokens"]
    for steps in zip(one["logprobs"], other["logprobs"], strict=True):
        for step in zip(*steps, strict=True):
            chances = [chance for each in step for _, chance in each]
            assert chances[:2] == pytest.approx(chances[2:], abs=1e-5)


@pytest.mark.parametrize("runner", BOTH)
@pytest.mark.parametrize(
    ("swapped", "fresh"), [("swapped to second", "second"), ("swapped to none", "none"), ("swapped back", "swapped")]
)
def test_swapped_equals_fresh(answers: Answers, runner: str, swapped: str, fresh: str) -> None:
    assert same(answers[f"{runner} {swapped}"], answers[f"{runner} {fresh}"])


@pytest.mark.parametrize("runner", BOTH)
def test_the_patches_differ(answers: Answers, runner: str) -> None:
    assert len({str(answers[f"{runner} {name}"]["logprobs"]) for name in ("swapped", "second", "none")}) == 3


def test_swaps_are_verified(answers: Answers) -> None:
    for name in ("to second", "to none", "back"):
        one, other = (answers[f"{runner} swapped {name}"]["swap"] for runner in BOTH)
        assert "error" not in other
        assert other["verified"] == one["verified"] > 0
        assert other["unverified"] == []


def test_outputs_carry_the_patch(answers: Answers, request: pytest.FixtureRequest) -> None:
    first, _ = KINDS[request.node.callspec.params["answers"]]
    assert answers["V2 swapped"]["weight_versions"] == [[Patch.from_data(first).id]] * 2


def test_detectors_read_every_token(answers: Answers) -> None:
    assert answers["V2 none"]["watched"] == answers["V1 none"]["watched"]
    assert answers["V2 none"]["watched"] >= 2 * TOKENS
