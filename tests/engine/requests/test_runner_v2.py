# SPDX-License-Identifier: Apache-2.0
"""Slots on vLLM's second model runner, which every GPU has: its kernels run here by Triton's interpreter.

What this can't show is a CUDA graph.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.offline import Arm, run_arms
from tests.engine.requests.batches import every, exact_patch, last_patch
from tests.engine.test_load import same

if TYPE_CHECKING:
    from collections.abc import Callable

    Answers = dict[str, dict[str, Any]]

pytestmark = pytest.mark.engine

INTERPRETER = Path(__file__).parents[1] / "triton_interpreter"
PROMPTS = [[5, 17, 33, 90], [200, 41, 7]]
CHOICES = ["none", "exact", "mask"]


@pytest.fixture(scope="module", params=["Llama/two layers", "Qwen3Moe"])
def answers(request: pytest.FixtureRequest, family_model: Callable[[str], Path]) -> Answers:
    """Six requests, four in a batch; and the same by servers that have the patches in their weights."""
    model = str(family_model(request.param))
    made = (exact_patch(request.param), last_patch(request.param))
    patches = {patch["name"]: in_two_layers(patch) if "two" in request.param else patch for patch in made}
    batch: dict[str, Any] = {
        "prompts": [prompt for prompt in PROMPTS for _ in CHOICES],
        "max_tokens": 4,
        "options": {"dtype": "float32", "max_num_seqs": 4},
    }
    # Fewer at once than there are, so that later ones take the places of those that have ended.
    mixed = Arm(model, [], choices=CHOICES * 2, settings={"slots": 2}, fills=[*patches.values()], **batch)
    alone = [
        Arm(model, patches, choices=[None] * 6, **batch) for patches in ([], [patches["exact"]], [patches["mask"]])
    ]
    found = run_arms(
        mixed,
        *alone,
        TRITON_INTERPRET="1",
        PYTHONPATH=os.pathsep.join([str(INTERPRETER), os.environ.get("PYTHONPATH", "")]),
    )
    own = {
        f"weights: {name}": every(answer, place, 3)
        for place, (name, answer) in enumerate(zip(CHOICES, found[1:], strict=True))
    }
    return {"mixed": found[0], **own, **{name: every(found[0], place, 3) for place, name in enumerate(CHOICES)}}


def in_two_layers(patch: dict[str, Any]) -> dict[str, Any]:
    """A patch without what it says of layers from the third on, or of the first in their place."""
    edits = []
    for edit in patch["edits"]:
        kept = {
            kind: {str(int(layer) % 2): units for layer, units in edit[kind].items()}
            for kind in ("neurons", "experts")
            if kind in edit
        }
        edits.append({**edit, **kept})
    return {**patch, "edits": edits}


def test_it_is_the_second_runner(answers: Answers) -> None:
    assert [rank["runner"] for rank in answers["mixed"]["slots"]] == ["V2"]
    assert "Using V2 Model Runner" in answers["mixed"]["log"]


@pytest.mark.parametrize("name", CHOICES)
def test_each_request_is_answered_as_by_a_server_of_its_own(answers: Answers, name: str) -> None:
    assert same(answers[name], answers[f"weights: {name}"])


def test_the_patches_differ(answers: Answers) -> None:
    assert len({str(answers[name]["logprobs"]) for name in CHOICES}) == 3
