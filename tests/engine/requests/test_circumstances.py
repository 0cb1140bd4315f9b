# SPDX-License-Identifier: Apache-2.0
"""A patch per request in whatever else a server does: compiled, over two ranks, with adapters, preempted, speculating."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.requests.batches import (
    CLOSE,
    answer_batch,
    exact_patch,
    largest_difference,
    last_patch,
    rounded_patch,
)
from tests.engine.test_load import same
from tests.engine.test_two_ranks import PP, TP
from tests.models import patch_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.engine.requests.batches import Answers

pytestmark = pytest.mark.engine

FLOAT: dict[str, Any] = {"dtype": "float32"}
# Two layers, since each is compiled for seconds.
SMALL = [patch_of({(0, 3): -1.0, (1, 7): 0.0, (1, 5): 2.0}, "exact"), patch_of({(0, 9): 3.0}, "rounded")]
EXPERTS = [exact_patch("Qwen3Moe"), rounded_patch("Qwen3Moe"), last_patch("Qwen3Moe")]
DENSE = [exact_patch("Llama"), rounded_patch("Llama")]

CASES: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
    "compiled": ("Llama/two layers", SMALL, {**FLOAT, "enforce_eager": False}),
    "compiled experts": (
        "Qwen3Moe/two layers",
        [patch_of({}, "exact", {(0, 1): -1.0, (1, 2): 0.5})],
        {**FLOAT, "enforce_eager": False},
    ),
    "TP 2": ("Llama", DENSE, TP),
    "TP 2, experts": ("Qwen3Moe", EXPERTS, TP),
    "PP 2": ("Llama", DENSE, PP),
    "chunked prefill": ("Llama", DENSE, {**FLOAT, "max_num_batched_tokens": 16, "max_num_seqs": 8}),
    "preempted": ("Llama", DENSE, {**FLOAT, "num_gpu_blocks_override": 8, "block_size": 16, "max_model_len": 96}),
    "speculating": (
        "Llama",
        DENSE,
        {**FLOAT, "speculative_config": {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2}},
    ),
}
SAME_BATCHES = {"compiled", "compiled experts", "TP 2", "TP 2, experts", "PP 2"}
"""Where the mixed server cuts its work up as those with edited weights do, so that even the last bits are equal."""


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def answers(case: str, family_model: Callable[[str], Path]) -> Answers:
    family, patches, options = CASES[case]
    by_name = {patch["name"]: patch for patch in patches}
    return answer_batch(family_model(family), by_name, options=options, **_of_ranks(options))


def _of_ranks(options: dict[str, Any]) -> dict[str, Any]:
    """Two ranks wait for each other by turning in circles, so that every token costs much on few cores."""
    return {"forked": True, "max_tokens": 5} if "distributed_executor_backend" in options else {}


def test_each_request_is_answered_as_by_a_server_of_its_own(case: str, answers: Answers) -> None:
    _, patches, _ = CASES[case]
    for choice, reference in [("none", "plain"), *((patch["name"], f"weights: {patch['name']}") for patch in patches)]:
        assert answers[choice]["tokens"] == answers[reference]["tokens"], choice
        assert largest_difference(answers[choice], answers[reference]) <= CLOSE, choice
        if case in SAME_BATCHES and choice != "rounded":
            assert same(answers[choice], answers[reference]), choice


def test_the_patches_differ(case: str, answers: Answers) -> None:
    _, patches, _ = CASES[case]
    assert len({str(answers[name]["logprobs"]) for name in ("none", *(patch["name"] for patch in patches))}) > len(
        patches
    )
