# SPDX-License-Identifier: Apache-2.0
"""One batch of requests under different patches == each under a server that has its patch in the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.engine.requests.batches import CLOSE, answer_batch, largest_difference, patches_of
from tests.engine.test_load import same

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.engine.requests.batches import Answers

pytestmark = pytest.mark.engine

FAMILIES = ("Llama", "Qwen2", "Gemma3", "Gemma4/dense", "Qwen2Moe", "Qwen3Moe", "Gemma4/experts", "GptOss")


@pytest.fixture(scope="module", params=FAMILIES)
def answers(request: pytest.FixtureRequest, family_model: Callable[[str], Path]) -> Answers:
    """16 requests in one batch: four prompts, each under none and three patches."""
    family = request.param
    return answer_batch(family_model(family), patches_of(family), options={"dtype": "float32"})


def test_a_request_without_a_patch_is_answered_as_by_a_server_without_slots(answers: Answers) -> None:
    assert same(answers["none"], answers["plain"])


@pytest.mark.parametrize("name", ["exact", "mask"])
def test_gains_that_round_nothing_are_those_of_edited_weights_bit_for_bit(answers: Answers, name: str) -> None:
    assert same(answers[name], answers[f"weights: {name}"])


def test_other_gains_are_those_of_edited_weights_but_for_rounding(answers: Answers) -> None:
    assert answers["rounded"]["tokens"] == answers["weights: rounded"]["tokens"]
    assert largest_difference(answers["rounded"], answers["weights: rounded"]) <= CLOSE


def test_the_patches_differ(answers: Answers) -> None:
    assert len({str(answers[name]["logprobs"]) for name in ("none", "exact", "rounded", "mask")}) == 4
