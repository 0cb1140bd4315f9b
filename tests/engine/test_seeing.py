# SPDX-License-Identifier: Apache-2.0
"""Models that also see pictures, serving text: their language model is patched and swapped like one that stands alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.families import arms_of, assert_past_is_refused, case_of, cases, edit_each
from tests.engine.offline import PROMPTS, Arm, run_arms
from tests.engine.reference import assert_close
from tests.engine.seeing import with_eyes
from tests.engine.test_load import same
from tests.engine.test_masks import MASKED, OTHERS, masks
from tests.models import SEEING_FAMILIES, edit_slices, has_experts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    Answers = dict[str, dict[str, Any]]

pytestmark = pytest.mark.engine

CASES = cases(SEEING_FAMILIES)
TEXT_ALONE = {"Gemma3n/seeing": "Gemma3n"}
"""The family whose towers transformers can't make here, and its text model, which has the same weights."""

WITH_EXPERTS = [family for family in SEEING_FAMILIES if has_experts(family)]


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory, family_model: Callable[[str], Path]) -> Mapping[str, Path]:
    return edit_each(CASES, family_model, tmp_path_factory.mktemp("by_hand"))


@pytest.fixture(scope="module")
def answers(by_hand: Mapping[str, Path], family_model: Callable[[str], Path]) -> Answers:
    arms: dict[str, Arm] = {}
    for family, case in CASES.items():
        arms |= arms_of(case, family_model(family), by_hand[family], past=True)
    for family in WITH_EXPERTS:
        model, later = str(family_model(family)), [[masks(OTHERS)], []]
        arms[f"{family} masked"] = Arm(model, [masks(MASKED)], CASES[family].options, max_tokens=6, later=later)
    return dict(zip(arms, run_arms(*arms.values(), **with_eyes()), strict=True))


@pytest.mark.parametrize("family", CASES)
def test_a_patch_equals_a_checkpoint_edited_by_hand(answers: Answers, family: str) -> None:
    assert answers[f"{family} patched"]["logprobs"] != answers[family]["logprobs"]
    assert same(answers[f"{family} patched"], answers[f"{family} by hand"])


@pytest.mark.parametrize("family", CASES)
def test_transformers_answers_alike(
    tmp_path: Path,
    answers: Answers,
    by_hand: Mapping[str, Path],
    family_model: Callable[[str], Path],
    family: str,
) -> None:
    unpatched, patched = family_model(family), by_hand[family]
    if text := TEXT_ALONE.get(family):
        unpatched = family_model(text)
        patched = edit_slices(unpatched, tmp_path / "by_hand", case_of(text).slices)
    assert_close(answers[family], unpatched, PROMPTS)
    assert_close(answers[f"{family} patched"], patched, PROMPTS)


@pytest.mark.parametrize("family", CASES)
def test_swapped_in_and_out_equals_patched_and_unpatched(answers: Answers, family: str) -> None:
    swapped_in, swapped_out = answers[family]["later"]
    assert same(swapped_in, answers[f"{family} patched"]), swapped_in["swap"]
    assert same(swapped_out, answers[family]), swapped_out["swap"]


@pytest.mark.parametrize("family", CASES)
def test_one_past_the_last_layer_neuron_or_expert_is_refused(answers: Answers, family: str) -> None:
    assert_past_is_refused(CASES[family], answers[f"{family} patched"]["swaps"])


@pytest.mark.parametrize("family", WITH_EXPERTS)
def test_a_mask_is_a_logit_of_minus_infinity(
    answers: Answers, family_model: Callable[[str], Path], family: str
) -> None:
    others, unmasked = answers[f"{family} masked"]["later"]
    assert_close(answers[f"{family} masked"], family_model(family), PROMPTS, masked=MASKED)
    assert_close(others, family_model(family), PROMPTS, masked=OTHERS)
    assert_close(unmasked, family_model(family), PROMPTS)
