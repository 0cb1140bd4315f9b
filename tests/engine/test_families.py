# SPDX-License-Identifier: Apache-2.0
"""Every family: served with a patch == served from a checkpoint that was edited by hand, bit for bit, and as transformers
answers that checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.families import arms_of, assert_past_is_refused, cases, edit_each
from tests.engine.offline import PROMPTS, Arm, run_arms
from tests.engine.reference import assert_close
from tests.engine.test_load import same

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    Answers = dict[str, dict[str, Any]]

pytestmark = pytest.mark.engine

CASES = cases()


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory, family_model: Callable[[str], Path]) -> Mapping[str, Path]:
    return edit_each(CASES, family_model, tmp_path_factory.mktemp("by_hand"))


@pytest.fixture(scope="module")
def answers(by_hand: Mapping[str, Path], family_model: Callable[[str], Path]) -> Answers:
    arms: dict[str, Arm] = {}
    for family, case in CASES.items():
        arms |= arms_of(case, family_model(family), by_hand[family], past=True)
    return dict(zip(arms, run_arms(*arms.values()), strict=True))


@pytest.mark.parametrize("family", CASES)
def test_a_patch_equals_a_checkpoint_edited_by_hand(answers: Answers, family: str) -> None:
    assert answers[f"{family} patched"]["logprobs"] != answers[family]["logprobs"]
    assert same(answers[f"{family} patched"], answers[f"{family} by hand"])


@pytest.mark.parametrize("family", CASES)
def test_transformers_answers_alike(
    answers: Answers, by_hand: Mapping[str, Path], family_model: Callable[[str], Path], family: str
) -> None:
    assert_close(answers[family], family_model(family), PROMPTS)
    assert_close(answers[f"{family} patched"], by_hand[family], PROMPTS)


def test_in_bfloat16_a_patch_differs_by_more_than_rounding(
    answers: Answers, family_model: Callable[[str], Path]
) -> None:
    with pytest.raises(AssertionError):
        assert_close(answers["Qwen3Next patched"], family_model("Qwen3Next"), PROMPTS)


@pytest.mark.parametrize("family", sorted(CASES.keys() - {"GptOss"}))
def test_swapped_in_and_out_equals_patched_and_unpatched(answers: Answers, family: str) -> None:
    swapped_in, swapped_out = answers[family]["later"]
    assert same(swapped_in, answers[f"{family} patched"]), swapped_in["swap"]
    assert same(swapped_out, answers[family]), swapped_out["swap"]


def test_experts_that_vllm_can_not_load_while_it_serves_are_refused(answers: Answers) -> None:
    refused, _ = answers["GptOss"]["later"]
    assert refused["swap"]["error"].startswith("CannotSwapError: model.layers.")
    assert refused["swap"]["error"].endswith("GptOssRoutedExperts can't be loaded while it serves, only at a start")
    assert same(refused, answers["GptOss"])


@pytest.mark.parametrize("family", CASES)
def test_one_past_the_last_layer_neuron_or_expert_is_refused(answers: Answers, family: str) -> None:
    assert_past_is_refused(CASES[family], answers[f"{family} patched"]["swaps"])


@pytest.mark.parametrize("family", CASES)
def test_the_report_counts_units(answers: Answers, family: str) -> None:
    (report,) = answers[f"{family} patched"]["reports"]
    assert report["units"] == CASES[family].units
