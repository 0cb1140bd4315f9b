# SPDX-License-Identifier: Apache-2.0
"""Controls for a patch: the same ops and factors in the same layers, on other neurons chosen by a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vllm_surgery.conventions import locate
from vllm_surgery.errors import SurgeryError
from vllm_surgery.patch import Patch
from vllm_surgery.review import review
from vllm_surgery.stack import PatchSet, SourcedPatch

if TYPE_CHECKING:
    from vllm_surgery.checkpoint import ModelFolder
    from vllm_surgery.plan import Plan, TensorEdit


@dataclass(frozen=True)
class Sham:
    """A patch that does to other neurons what the true one does to its own.

    Attributes:
        neurons: layer and index of each.
        norm_ratio: norm of what its columns of the down projections hold, relative to the true patch's columns.
    """

    patch: Patch
    neurons: list[tuple[int, int]]
    norm_ratio: float


def make_shams(patch: Patch, folder: ModelFolder, count: int, seed: int) -> list[Sham]:
    """`count` shams of `patch`, no two with a neuron in common, nor with `patch`.

    Raises:
        SurgeryError: the patch isn't for this model, or has too many neurons in a layer.
    """
    source = random.Random(seed)
    true = plan_of(patch, folder)
    drawn = [_draw(edit, count, source) for edit in true.edits]
    return [_sham(patch, true, [draws[number] for draws in drawn], folder, number) for number in range(count)]


def plan_of(patch: Patch, folder: ModelFolder) -> Plan:
    """The plan of `patch` for the model in `folder`.

    Raises:
        SurgeryError: the patch isn't for this model.
    """
    return review(PatchSet((SourcedPatch(patch.name, patch),)), folder)


def _draw(edit: TensorEdit, count: int, source: random.Random) -> list[list[int]]:
    size = len(edit.indices)
    others = sorted(set(range(edit.shape[edit.axis])) - set(edit.indices))
    if count * size > len(others):
        raise SurgeryError(f"{edit.tensor}: {size} of {edit.shape[edit.axis]} neurons leave no room for {count} shams")
    drawn = source.sample(others, count * size)
    return [drawn[start : start + size] for start in range(0, len(drawn), size)]


def _sham(patch: Patch, true: Plan, indices: list[list[int]], folder: ModelFolder, number: int) -> Sham:
    gains = [
        (_layer(edit), index, gain)
        for edit, chosen in zip(true.edits, indices, strict=True)
        for index, gain in zip(chosen, edit.gains, strict=True)
    ]
    edits = [_edit(*gain) for gain in gains]
    sham = Patch.from_data({"version": 1, "name": f"sham-{number + 1}", "model": patch.model.given(), "edits": edits})
    ratio = _norm(plan_of(sham, folder), folder) / _norm(true, folder)
    return Sham(sham, [(layer, index) for layer, index, _ in gains], ratio)


def _edit(layer: int, index: int, factor: float) -> dict[str, Any]:
    op = {0.0: {"op": "zero"}, -1.0: {"op": "negate"}}.get(factor, {"op": "scale", "factor": factor})
    return {**op, "neurons": {str(layer): [index]}}


def _layer(edit: TensorEdit) -> int:
    slot = locate(edit.tensor)
    assert slot is not None  # The planner has located it before.
    return slot.layer


def _norm(plan: Plan, folder: ModelFolder) -> float:
    columns = [
        _numbers(folder.read_slice(edit.tensor, edit.axis, index), edit.dtype)
        for edit in plan.edits
        for index in edit.indices
    ]
    return float(np.linalg.norm(np.concatenate(columns)))


def _numbers(content: bytes, dtype: str) -> np.ndarray:
    if dtype == "BF16":
        return (np.frombuffer(content, "<u2").astype("<u4") << 16).view("<f4").astype(float)
    return np.frombuffer(content, {"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype]).astype(float)
