# SPDX-License-Identifier: Apache-2.0
"""Slots that nobody asked for are not there: nothing is installed, so nothing is paid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.offline import Arm, run_arms
from tests.models import EXPERT_LAYERS, patch_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def answers(family_model: Callable[[str], Path]) -> dict[str, dict[str, Any]]:
    model, patch = str(family_model("Gemma4/experts")), patch_of({(0, 0): -1.0}, "p")
    arms = {
        "no plugin's setting": Arm(model),
        "a patch in the weights": Arm(model, [patch]),
        "slots": Arm(model, [patch], settings={"slots": 2}),
        "slots, unpatched": Arm(model, [patch], settings={"slots": 2}, choices=["none"] * 3),
        "alone": Arm(model, choices=[None] * 3),
    }
    for arm in arms.values():
        arm.options |= {"dtype": "float32"}
    return dict(zip(arms, run_arms(*arms.values()), strict=True))


@pytest.mark.parametrize("name", ["no plugin's setting", "a patch in the weights"])
def test_without_slots_every_object_is_as_vllm_made_it(answers: dict[str, dict[str, Any]], name: str) -> None:
    assert answers[name]["hooked"] == []
    assert answers[name]["slots"] == [{"slots": 0}]


def test_with_slots_this_test_sees_what_is_installed(answers: dict[str, dict[str, Any]]) -> None:
    hooked = answers["slots"]["hooked"]
    assert {name.partition(".")[0] for name in hooked} >= {"processor", "core", "runner", "worker"}
    for method in ("apply", "_maybe_dispatch", "_compute_routing"):
        assert sum(name.endswith(f".{method}") for name in hooked) == EXPERT_LAYERS, hooked


def test_the_patches_of_a_start_are_the_default_and_the_weights_stay(answers: dict[str, dict[str, Any]]) -> None:
    assert answers["slots"]["tokens"] == answers["a patch in the weights"]["tokens"]
    assert answers["slots"]["logprobs"] == answers["a patch in the weights"]["logprobs"]
    assert answers["slots, unpatched"]["logprobs"] == answers["alone"]["logprobs"]
    assert answers["slots"]["weight_version"] == "default"
    assert answers["slots"]["reports"][0]["id"] == "none"
