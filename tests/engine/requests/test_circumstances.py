# SPDX-License-Identifier: Apache-2.0
"""A patch per request where the model is compiled, dense and with experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.requests.batches import (
    CLOSE,
    answer_batch,
    largest_difference,
)
from tests.engine.test_load import same
from tests.models import patch_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.engine.requests.batches import Answers

pytestmark = pytest.mark.engine

FLOAT: dict[str, Any] = {"dtype": "float32"}
# Two layers, since each is compiled for seconds.
SMALL = [patch_of({(0, 3): -1.0, (1, 7): 0.0, (1, 5): 2.0}, "exact"), patch_of({(0, 9): 3.0}, "rounded")]

CASES: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
    "compiled": ("Llama/two layers", SMALL, {**FLOAT, "enforce_eager": False}),
    "compiled experts": (
        "Qwen3Moe/two layers",
        [patch_of({}, "exact", {(0, 1): -1.0, (1, 2): 0.5})],
        {**FLOAT, "enforce_eager": False},
    ),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def answers(case: str, family_model: Callable[[str], Path]) -> Answers:
    family, patches, options = CASES[case]
    by_name = {patch["name"]: patch for patch in patches}
    return answer_batch(family_model(family), by_name, options=options)


def test_each_request_is_answered_as_by_a_server_of_its_own(case: str, answers: Answers) -> None:
    _, patches, _ = CASES[case]
    for choice, reference in [("none", "plain"), *((patch["name"], f"weights: {patch['name']}") for patch in patches)]:
        assert answers[choice]["tokens"] == answers[reference]["tokens"], choice
        assert largest_difference(answers[choice], answers[reference]) <= CLOSE, choice
        if choice != "rounded":
            assert same(answers[choice], answers[reference]), choice


def test_the_patches_differ(case: str, answers: Answers) -> None:
    _, patches, _ = CASES[case]
    assert len({str(answers[name]["logprobs"]) for name in ("none", *(patch["name"] for patch in patches))}) > len(
        patches
    )
