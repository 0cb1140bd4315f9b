# SPDX-License-Identifier: Apache-2.0
"""The public names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import vllm_surgery
from tests.folders import write_model
from tests.models import patch_of
from vllm_surgery import ModelFolder, Patch, PatchError, apply_to_checkpoint, plan
from vllm_surgery.offline.diff import diff

if TYPE_CHECKING:
    from pathlib import Path

FIRST = Patch.from_data(patch_of({(0, 1): -1.0}, "first"))
SECOND = Patch.from_data(patch_of({(1, 2): 0.0}, "second"))


def test_every_public_name_is_there() -> None:
    assert [name for name in vllm_surgery.__all__ if not hasattr(vllm_surgery, name)] == []


def test_one_patch_or_several_are_planned(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    assert plan(FIRST, model).id == FIRST.id
    assert plan([SECOND, FIRST], str(model)).id == f"{FIRST.id}+{SECOND.id}"


def test_several_patches_are_applied(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    out = apply_to_checkpoint([FIRST, SECOND], model, tmp_path / "out")
    assert diff(ModelFolder(model), ModelFolder(out)).gains == {(0, 1): -1.0, (1, 2): 0.0}


def test_patches_that_name_the_same_unit_are_refused(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    with pytest.raises(
        PatchError, match=r"^first: edits\[0\]\.neurons\.0: neurons 1 of layer 0: already named in first"
    ):
        apply_to_checkpoint([FIRST, FIRST], model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
