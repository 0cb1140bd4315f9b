# SPDX-License-Identifier: Apache-2.0
"""Small patches, and what every refusal must look like."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest

from vllm_surgery.errors import SurgeryError
from vllm_surgery.patch.format import Patch
from vllm_surgery.patch.patch_set import PatchSet, SourcedPatch

if TYPE_CHECKING:
    from collections.abc import Callable

SOURCE = "p.yaml"


def zero(selection: dict[str, Any], kind: str = "neurons") -> dict[str, Any]:
    return {"op": "zero", kind: selection}


def scale(factor: object, selection: dict[str, Any]) -> dict[str, Any]:
    return {"op": "scale", "factor": factor, "neurons": selection}


def patch_data(*edits: object, **changes: object) -> dict[str, Any]:
    """A small sound patch as plain data, with these edits and top-level keys instead."""
    data = {"version": 1, "name": "small", "edits": list(edits) or [zero({"1": [2]})], **changes}
    return copy.deepcopy(data)


def patches_of(*edits: object, source: str = SOURCE, **changes: object) -> PatchSet:
    """A set of one patch."""
    return PatchSet((SourcedPatch(source, Patch.from_data(patch_data(*edits, **changes), source)),))


def refusal(action: Callable[[], object], kind: type[SurgeryError] = SurgeryError) -> str:
    """The text with which `action` is refused: by this very type of error, in one printable line."""
    with pytest.raises(SurgeryError) as caught:
        action()
    text = str(caught.value)
    assert text
    assert text.isprintable(), text
    assert kind in {SurgeryError, type(caught.value)}, caught.value
    return text
