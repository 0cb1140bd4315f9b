# SPDX-License-Identifier: Apache-2.0
"""Quantised models: served with a patch == served from a checkpoint whose codes and scales were edited by hand.

Here is one format for each kernel and naming that vLLM's CPU backend has for them. What all formats stand for is tested
without it, in `tests/formats`.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from tests.engine.offline import Arm, run_arms
from tests.engine.test_load import same
from tests.formats.quantised import kinds, make_served, name, stored
from tests.models import LAYERS, WIDTH, patch_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.formats.quantised import Kind, Tensors

pytestmark = pytest.mark.engine

GROUP = 32  # The smallest that vLLM takes.
KINDS = {
    word: kind
    for word, kind in kinds(GROUP).items()
    if word in {"fp8 per channel", "int8 per channel", "int4 in groups", "awq"}
}
GAINS = {(0, 0): -1.0, (0, 1): 0.5, (3, 40): 0.0, (5, 7): 3.0, (LAYERS - 1, WIDTH - 1): -0.7}


def edited(tensors: Tensors, kind: Kind) -> Tensors:
    """The checkpoint that the patch should come to."""
    assert kind.out_axis is not None
    for (layer, index), gain in GAINS.items():
        codes = tensors.get(name(layer, "down", "weight"))
        signs_apart = codes is not None and codes.dtype == torch.float8_e4m3fn
        if codes is not None and signs_apart:
            codes[:, index] = (codes[:, index].float() * (gain / abs(gain) if gain else 0.0)).to(codes.dtype)
        scale = tensors[name(layer, "up", kind.scale)].select(kind.out_axis, index)
        scale.copy_((scale.float() * ((abs(gain) or 1.0) if signs_apart else gain)).to(scale.dtype))
    return tensors


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """For each kind: with the patch, and by hand. One process makes all."""
    folder = tmp_path_factory.mktemp("quantised")
    arms = [arm for word, kind in KINDS.items() for arm in _arms(folder / word.replace(" ", "-"), kind)]
    given = iter(run_arms(*arms))
    return {word: [next(given), next(given)] for word in KINDS}


def _arms(model: Path, kind: Kind) -> list[Arm]:
    by_hand = shutil.copytree(make_served(model, kind), model.with_name(f"{model.name}-by-hand"))
    save_file(edited(stored(model), kind), by_hand / "model.safetensors", {"format": "pt"})
    return [Arm(str(model), [patch_of(GAINS)]), Arm(str(by_hand))]


@pytest.mark.parametrize("word", KINDS)
def test_served_with_a_patch_is_served_from_a_checkpoint_edited_by_hand(
    answers: dict[str, list[dict[str, Any]]], word: str
) -> None:
    patched, by_hand = answers[word]

    assert same(patched, by_hand)


@pytest.mark.parametrize("word", KINDS)
def test_a_swap_is_refused_with_the_reason(answers: dict[str, list[dict[str, Any]]], word: str) -> None:
    (report,) = answers[word][0]["reports"]

    assert "the model is quantised" in str(report)
