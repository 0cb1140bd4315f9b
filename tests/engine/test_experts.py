# SPDX-License-Identifier: Apache-2.0
"""Experts: served with a patch == served from a checkpoint that was edited by hand, bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.offline import Arm, run_arms
from tests.engine.test_load import same
from tests.models import EXPERT_FAMILIES, WIDTH, down, edit_slices, patch_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Answers = dict[str, dict[str, Any]]
    Slices = dict[tuple[str, int | None, int], float]

pytestmark = pytest.mark.engine

GAINS = {(1, 0): -1.0, (1, 1): 0.5, (1, 3): 0.0, (3, 7): -1.0, (3, 0): -0.8, (2, 5): 3.0}
"""Every op, in the first layer that has experts in all families and in the last, on the first expert and the last."""


def own(name: str = "mlp.experts.{expert}.down_proj.weight") -> Slices:
    """The gains on tensors that each expert has for itself."""
    return {
        (f"model.layers.{layer}.{name.format(expert=expert)}", None, 0): gain for (layer, expert), gain in GAINS.items()
    }


def shared(*names: str) -> Slices:
    """The gains on tensors that all experts of a layer share."""
    return {
        (f"model.layers.{layer}.{name}", 0, expert): gain for (layer, expert), gain in GAINS.items() for name in names
    }


def dense(neurons: dict[tuple[int, int], float]) -> Slices:
    """The gains of neurons of a dense MLP."""
    return {(down(layer), 1, index): gain for (layer, index), gain in neurons.items()}


FIRST_LAYER = {(0, 3): -1.0, (0, WIDTH - 1): 0.5}
BESIDE = {(1, 3): -1.0, (2, WIDTH - 1): 0.5}
FAMILIES: dict[str, tuple[Slices, dict[tuple[int, int], float]]] = {
    "Qwen2Moe": (own(), {}),
    "Qwen3Moe": (own(), {}),
    "Mixtral": (own("block_sparse_moe.experts.{expert}.w2.weight"), {}),
    "Olmoe": (own(), {}),
    "DeepseekV2": (own() | dense(FIRST_LAYER), FIRST_LAYER),
    "DeepseekV3": (own() | dense(FIRST_LAYER), FIRST_LAYER),
    "Glm4Moe": (own() | dense(FIRST_LAYER), FIRST_LAYER),
    "GptOss": (shared("mlp.experts.down_proj", "mlp.experts.down_proj_bias"), {}),
    "Gemma4/experts": (shared("router.per_expert_scale") | dense(BESIDE), BESIDE),
}
"""What each family's checkpoint has to become, and the neurons that are edited together with the experts."""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory, family_model: Callable[[str], Path]) -> Answers:
    """Each family unpatched, patched, and edited by hand."""
    work = tmp_path_factory.mktemp("experts")
    arms: dict[str, Arm] = {}
    for family, (slices, neurons) in FAMILIES.items():
        base = family_model(family)
        patch = patch_of(neurons, experts=GAINS)
        arms[family] = Arm(str(base), later=[[patch], []])
        arms[f"{family} patched"] = Arm(str(base), [patch])
        arms[f"{family} by hand"] = Arm(str(edit_slices(base, work / family, slices)))
    return dict(zip(arms, run_arms(*arms.values()), strict=True))


def test_every_family_is_here() -> None:
    assert FAMILIES.keys() == set(EXPERT_FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_patch_equals_a_checkpoint_edited_by_hand(answers: Answers, family: str) -> None:
    assert answers[f"{family} patched"]["logprobs"] != answers[family]["logprobs"]
    assert same(answers[f"{family} patched"], answers[f"{family} by hand"])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_report_counts_units(answers: Answers, family: str) -> None:
    (report,) = answers[f"{family} patched"]["reports"]
    assert report["units"] == len(GAINS) + len(FAMILIES[family][1])


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"GptOss"}))
def test_swapped_in_and_out_equals_patched_and_unpatched(answers: Answers, family: str) -> None:
    swapped_in, swapped_out = answers[family]["later"]
    assert same(swapped_in, answers[f"{family} patched"]), swapped_in["swap"]
    assert same(swapped_out, answers[family]), swapped_out["swap"]


def test_experts_that_vllm_can_not_load_while_it_serves_are_refused(answers: Answers) -> None:
    refused, _ = answers["GptOss"]["later"]
    assert refused["swap"]["error"].startswith("CannotSwapError: model.layers.")
    assert refused["swap"]["error"].endswith("GptOssRoutedExperts can't be loaded while it serves, only at a start")
    assert same(refused, answers["GptOss"])
