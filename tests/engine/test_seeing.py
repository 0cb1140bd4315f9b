# SPDX-License-Identifier: Apache-2.0
"""Models that also see pictures, serving text: their language model is patched and swapped like one that stands alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.families import arms_of, cases, edit_each
from tests.engine.offline import PROMPTS, Arm, run_arms
from tests.engine.reference import assert_close
from tests.engine.test_load import same
from tests.models import SEEING_FAMILIES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    Answers = dict[str, dict[str, Any]]

pytest.importorskip("torchvision", reason="vLLM imports these models' image processors, which import torchvision")

pytestmark = pytest.mark.engine

# Gemma 3n's vision tower is made by timm, even where it isn't used.
CASES = cases(family for family in SEEING_FAMILIES if family != "Gemma3n/seeing")


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory, family_model: Callable[[str], Path]) -> Mapping[str, Path]:
    return edit_each(CASES, family_model, tmp_path_factory.mktemp("by_hand"))


@pytest.fixture(scope="module")
def answers(by_hand: Mapping[str, Path], family_model: Callable[[str], Path]) -> Answers:
    arms: dict[str, Arm] = {}
    for family, case in CASES.items():
        arms |= arms_of(case, family_model(family), by_hand[family], past=False)
    return dict(zip(arms, run_arms(*arms.values()), strict=True))


@pytest.mark.parametrize("family", CASES)
def test_a_patch_equals_a_checkpoint_edited_by_hand(answers: Answers, by_hand: Mapping[str, Path], family: str) -> None:
    patched = answers[f"{family} patched"]
    assert patched["logprobs"] != answers[family]["logprobs"]
    assert same(patched, answers[f"{family} by hand"])
    assert_close(patched, by_hand[family], PROMPTS)


@pytest.mark.parametrize("family", CASES)
def test_swapped_in_and_out_equals_patched_and_unpatched(answers: Answers, family: str) -> None:
    swapped_in, swapped_out = answers[family]["later"]
    assert same(swapped_in, answers[f"{family} patched"]), swapped_in["swap"]
    assert same(swapped_out, answers[family]), swapped_out["swap"]
