# SPDX-License-Identifier: Apache-2.0
"""Experts: served with a patch == served from a checkpoint that was edited by hand, bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.offline import Arm, run_arms
from tests.engine.test_load import same
from tests.models import down, edit_slices, patch_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Answers = dict[str, dict[str, Any]]
    Slices = dict[tuple[str, int | None, int], float]

pytestmark = pytest.mark.engine

GAINS = {(0, 0): -1.0, (0, 1): 0.5, (1, 3): 0.0, (3, 7): -1.0, (3, 0): -0.8, (2, 5): 3.0}
"""Every op, in the first layer and the last, on the first expert and the last."""
NEURONS = {(1, 3): -1.0, (2, 127): 0.5}
"""Beside them, of a dense MLP."""


def own_tensors(name: str) -> Slices:
    """The gains on tensors that each expert has for itself."""
    return {(name.format(layer=layer, expert=expert), None, 0): gain for (layer, expert), gain in GAINS.items()}


def slices_of(name: str) -> Slices:
    """The gains on a tensor that all experts of a layer share."""
    return {(name.format(layer=layer), 0, expert): gain for (layer, expert), gain in GAINS.items()}


def dense() -> Slices:
    return {(down(layer), 1, index): gain for (layer, index), gain in NEURONS.items()}


FAMILIES: dict[str, tuple[Slices, dict[tuple[int, int], float]]] = {
    "Qwen3Moe": (own_tensors("model.layers.{layer}.mlp.experts.{expert}.down_proj.weight"), {}),
    "Gemma4": (slices_of("model.layers.{layer}.router.per_expert_scale") | dense(), NEURONS),
}
"""What each family's checkpoint has to become, and the neurons that are edited beside the experts."""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory, family_model: Callable[[str], Path]) -> Answers:
    """Each family unpatched, patched, and edited by hand."""
    work = tmp_path_factory.mktemp("experts")
    arms: dict[str, Arm] = {}
    for family, (slices, neurons) in FAMILIES.items():
        base = family_model(family)
        arms[family] = Arm(str(base))
        arms[f"{family} patched"] = Arm(str(base), [patch_of(neurons, experts=GAINS)])
        arms[f"{family} by hand"] = Arm(str(edit_slices(base, work / family, slices)))
    return dict(zip(arms, run_arms(*arms.values()), strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_patch_equals_a_checkpoint_edited_by_hand(answers: Answers, family: str) -> None:
    assert answers[f"{family} patched"]["logprobs"] != answers[family]["logprobs"]
    assert same(answers[f"{family} patched"], answers[f"{family} by hand"])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_report_counts_units(answers: Answers, family: str) -> None:
    (report,) = answers[f"{family} patched"]["reports"]
    assert report["units"] == len(GAINS) + len(FAMILIES[family][1])
