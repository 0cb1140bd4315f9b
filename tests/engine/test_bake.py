# SPDX-License-Identifier: Apache-2.0
"""Served from the baked checkpoint == served with the patch, bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.engine.offline import Arm, run_arms
from tests.engine.test_load import GAINS, INVERSE, INVERTIBLE, same
from tests.models import make_model, patch_of
from vllm_surgery import ModelFolder, Patch, PatchSet
from vllm_surgery.offline.bake import bake
from vllm_surgery.patch.patch_set import SourcedPatch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.engine


def baked(model: Path, out: Path, gains: dict[tuple[int, int], float]) -> Path:
    patches = PatchSet((SourcedPatch("test", Patch.from_data(patch_of(gains))),))
    return bake(patches, ModelFolder(model), out).folder


def test_a_bake_is_what_the_patch_serves(tmp_path: Path, family_model: Callable[[str], Path]) -> None:
    llama, gemma = family_model("Llama"), make_model(tmp_path / "gemma", "Gemma3", max_shard_size="400KB")
    there = baked(llama, tmp_path / "there", INVERTIBLE)
    back = baked(there, tmp_path / "back", INVERSE)
    base, patched, from_bake, gemma_patched, gemma_from_bake, round_trip, undone = run_arms(
        Arm(str(llama)),
        Arm(str(llama), [patch_of(GAINS)]),
        Arm(str(baked(llama, tmp_path / "llama_baked", GAINS))),
        Arm(str(gemma), [patch_of(GAINS)]),
        Arm(str(baked(gemma, tmp_path / "gemma_baked", GAINS))),
        Arm(str(back)),
        Arm(str(there), [patch_of(INVERSE)]),
    )
    assert same(patched, from_bake)
    assert not same(patched, base)
    assert same(gemma_patched, gemma_from_bake)
    assert same(round_trip, base)
    assert same(undone, base)
