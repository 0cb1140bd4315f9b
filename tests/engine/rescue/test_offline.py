# SPDX-License-Identifier: Apache-2.0
"""An offline `LLM` rescues as a server does, and its other answers are those of one that rescues nothing, bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.offline import Arm, run_arms
from tests.localization import chain

if TYPE_CHECKING:
    from tests.localization.planted import Planted

pytestmark = pytest.mark.engine

LOOPING, HEALTHY = [0, 1], [2, 3]
PROMPTS = [chain.prompt(start) for start in (5, 20, 49, 62)]
TOKENS = 300
ACTIONS = {"none": None, "stop": "stop", "penalty": "penalty:2"}


@pytest.fixture(scope="module")
def answers(planted: Planted) -> dict[str, Any]:
    arms = [
        Arm(
            str(planted.folder),
            [],
            prompts=PROMPTS,
            options={"dtype": "float32"},
            max_tokens=TOKENS,
            settings={} if action is None else {"on_loop": action},
        )
        for action in ACTIONS.values()
    ]
    return dict(zip(ACTIONS, run_arms(*arms), strict=True))


@pytest.mark.parametrize("action", ["stop", "penalty"])
@pytest.mark.parametrize("number", HEALTHY)
def test_an_answer_that_does_not_loop_is_the_same(answers: dict[str, Any], action: str, number: int) -> None:
    for told in ("tokens", "logprobs", "text"):
        assert answers[action][told][number] == answers["none"][told][number]


@pytest.mark.parametrize("number", LOOPING)
def test_one_that_loops_is_stopped(answers: dict[str, Any], number: int) -> None:
    whole, stopped = (answers[action]["tokens"][number] for action in ("none", "stop"))
    assert len(whole) == TOKENS
    assert 100 < len(stopped) < TOKENS
    assert stopped == whole[: len(stopped)]


@pytest.mark.parametrize("number", LOOPING)
def test_one_that_loops_is_taken_back_and_goes_on(answers: dict[str, Any], number: int) -> None:
    whole, rescued = (answers[action]["tokens"][number] for action in ("none", "penalty"))
    same = next(place for place, pair in enumerate(zip(whole, rescued, strict=False)) if pair[0] != pair[1])
    assert same < 64, "the loop began before that"
    assert len(answers["penalty"]["logprobs"][number]) == len(rescued)
