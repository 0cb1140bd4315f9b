# SPDX-License-Identifier: Apache-2.0
"""Where in a tensor the bytes of one unit lie, which is what a seal covers.

Units share some numbers of quantised weights: packed codes a word, scales of groups a row of them. Of a word all is
taken, and of a tensor whose numbers can't be told apart by unit all of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_surgery.conventions import HALVES

if TYPE_CHECKING:
    from vllm_surgery.anatomy import TensorInfo
    from vllm_surgery.conventions import Role, Slot
    from vllm_surgery.formats.scheme import Scheme


@dataclass(frozen=True)
class Place:
    """A slice of a tensor.

    Attributes:
        role: the part of the unit that it is.
        axis: that `index` counts along; None for the whole tensor.
    """

    role: Role
    axis: int | None
    index: int


def places(slot: Slot, info: TensorInfo, index: int, scheme: Scheme | None) -> list[Place]:
    """Where unit `index` lies in a tensor beside or in place of a plain weight; empty where it has nothing there."""
    if slot.expert is not None:
        return [Place(slot.part.role, None, 0)] if index == slot.expert else []
    if slot.kind == "experts":
        return [Place(slot.part.role, slot.part.unit_axis, index)] if _has(info, slot.part.unit_axis, index) else []
    axis = _axis(slot, info, scheme)
    per_word = _per_word(slot, scheme)
    if axis is None or per_word is None:
        return [Place(slot.part.role, None, 0)]
    if not slot.part.halves:
        found = [Place(slot.part.role, axis, index // per_word)]
    else:
        width = info.shape[axis] // 2
        found = [Place(role, axis, index // per_word + half * width) for half, role in enumerate(HALVES)]
    return found if all(_has(info, place.axis, place.index) for place in found) else []


def _axis(slot: Slot, info: TensorInfo, scheme: Scheme | None) -> int | None:
    """The axis that counts neurons, singly or by words; None where none does."""
    stores, outputs = slot.spelling.stores, slot.spelling.out_axis
    axis: int | None = None
    if slot.part.role == "down":
        axis = 1 - outputs if stores == "codes" else None
    elif stores in {"codes", "zeros"} or (stores == "scales" and not (scheme is not None and scheme.blocks)):
        axis = outputs
    # One number, or one for each of the projections that are stored together, belongs to all neurons.
    return axis if axis is not None and len(info.shape) > axis and info.shape[axis] > len(HALVES) else None


def _per_word(slot: Slot, scheme: Scheme | None) -> int | None:
    """How many neurons' numbers share one along that axis."""
    per_word = None if scheme is None else scheme.per_word
    transposed = scheme is not None and scheme.transposed
    match slot.spelling.stores:
        case "codes":
            return per_word if transposed != (slot.part.role == "down") else 1
        case "zeros":
            return per_word
    return 1


def _has(info: TensorInfo, axis: int | None, index: int) -> bool:
    return axis is None or (axis < len(info.shape) and index < info.shape[axis])
