# SPDX-License-Identifier: Apache-2.0
"""Models that also see pictures, serving text: their language model is patched and swapped like one that stands alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.families import cases
from tests.engine.offline import PROMPTS, Arm, run_arms
from tests.engine.reference import assert_close
from tests.engine.test_load import same
from tests.models import SEEING_FAMILIES, edit_slices

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
    """Each family's checkpoint, edited by the tests' own arithmetic."""
    work = tmp_path_factory.mktemp("by_hand")
    return {family: edit_slices(family_model(family), work / family, case.slices) for family, case in CASES.items()}


@pytest.fixture(scope="module")
def answers(by_hand: Mapping[str, Path], family_model: Callable[[str], Path]) -> Answers:
    """Each family unpatched, then swapped in and out; patched; and edited by hand."""
    arms: dict[str, Arm] = {}
    for family, case in CASES.items():
        base, how = str(family_model(family)), {"options": {"dtype": "float32", **case.options}}
        arms[family] = Arm(base, later=[[case.patch], []], **how)
        arms[f"{family} patched"] = Arm(base, [case.patch], **how)
        arms[f"{family} by hand"] = Arm(str(by_hand[family]), **how)
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
