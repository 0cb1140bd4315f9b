# SPDX-License-Identifier: Apache-2.0
"""One rank's share of a swap: what it says of itself, and that it never trusts a file that changed under it."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from torch import nn

from tests.folders import write_model
from tests.models import patch_of
from vllm_surgery import CannotSwapError, Patch, PatchSet
from vllm_surgery.api import patch_set
from vllm_surgery.engine.swap import rank as module
from vllm_surgery.engine.swap.rank import Active, Swap, Verified
from vllm_surgery.engine.swap.source_checkpoint import SourceCheckpoint
from vllm_surgery.planning.planner import Plan

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

WANTED = patch_set(Patch.from_data(patch_of({(0, 0): -1.0, (1, 1): 0.5}), "wanted"))


class Part:
    """A part of the model that is fed by one tensor."""

    holds_experts, parameter = False, None

    def __init__(self, tensor: str) -> None:
        self.path, self.tensors = tensor, (tensor,)


class Writer:
    """Notes what it is given; may change a file on disk in the middle of it."""

    def __init__(self) -> None:
        self.written: list[str] = []
        self.masks = SimpleNamespace(stage=lambda *_: SimpleNamespace(changed=[], changes=[], **self._masks()))
        self.spoil: Path | None = None

    def _masks(self) -> dict[str, Any]:
        return {"write": lambda: None, "verify": lambda: 0, "restore": lambda: None}

    def check_room(self, part: Part, columns: Sequence[int] | None) -> None: ...

    def write(self, part: Part, tensor_of: Any, columns: Sequence[int] | None) -> None:
        tensor_of(part.tensors[0])
        self.written.append(part.path)
        if self.spoil is not None:
            touch(self.spoil)


def touch(file: Path) -> None:
    os.utime(file, ns=(1, 1))


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "parts_of", lambda _model, tensors, _names: [Part(name) for name in tensors])
    monkeypatch.setattr(module, "check_columns", lambda *_: 1)
    return write_model(tmp_path / "model", (6, 6))


def swap_of(model: Path, writer: Writer) -> Swap:
    return Swap(Active(PatchSet(), Plan("none", (), 0)), WANTED, SourceCheckpoint(model), nn.Module(), writer)  # type: ignore[arg-type]


def test_what_is_read_back_is_counted(model: Path) -> None:
    swap = swap_of(model, Writer())
    swap.apply()
    assert swap.verify() == Verified(2, {})


def test_what_can_not_be_read_back_is_said(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "check_columns", lambda part, *_: None if "layers.0" in part.path else 3)
    swap = swap_of(model, Writer())
    swap.apply()
    verified = swap.verify()
    assert (verified.places, sum(verified.unverified.values())) == (3, 1)


def test_a_file_that_changes_while_it_is_staged_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = SourceCheckpoint.tensor

    def read(self: SourceCheckpoint, name: str) -> Any:
        touch(model / "model.safetensors")
        return original(self, name)

    monkeypatch.setattr(SourceCheckpoint, "tensor", read)
    with pytest.raises(CannotSwapError, match=r"^model\.safetensors is no longer the file that was loaded$"):
        swap_of(model, Writer())


def test_what_is_too_large_to_hold_ready_is_read_from_the_same_file(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "READY_BYTES", 0)
    writer = Writer()
    swap = swap_of(model, writer)
    writer.spoil = model / "model.safetensors"
    swap.apply()
    with pytest.raises(CannotSwapError, match="no longer the file that was loaded"):
        swap.verify()


def test_old_weights_come_from_the_same_file_or_are_not_the_old_ones(model: Path) -> None:
    swap = swap_of(model, Writer())
    swap.apply()
    touch(model / "model.safetensors")
    with pytest.raises(CannotSwapError, match="no longer the file that was loaded"):
        swap.restore()
