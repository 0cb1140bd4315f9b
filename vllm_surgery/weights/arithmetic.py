# SPDX-License-Identifier: Apache-2.0
"""The one place where weights are changed. Loading, swapping, baking and exporting all call it."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from vllm_surgery.errors import CheckpointError, SurgeryError
from vllm_surgery.model.routers import LOWEST
from vllm_surgery.patch.direction import Projection
from vllm_surgery.patch.units import MASK
from vllm_surgery.weights.codes import scaled_bytes
from vllm_surgery.weights.tensors import bits, dtype_word

if TYPE_CHECKING:
    from vllm_surgery.planning.planner import TensorEdit

# Numbers that are multiplied together at a time. An expert of a large model has more; a few dozen neurons have fewer.
# It bounds what an edit needs beside the tensor and its copy to some 200 MB.
_NUMBERS_AT_ONCE = 1 << 24


def apply_edit(tensor: torch.Tensor, edit: TensorEdit) -> torch.Tensor:
    """A copy of `tensor` in which each slice that `edit` names is its original times its gain, or the lowest number.

    Single neurons inside experts are slices of the matrices of these, and get their gains alike.

    The product is taken in float32 (float64 for a float64 tensor) and cast to the tensor's own format. For 16 bits
    these are two roundings, as in every engine that would compute it: where the first makes a tie, the weight is one
    step off what one rounding of the exact product gives (4 % of weights at 0.9, none at -0.8, 0.5 or 3). What a column
    loses of a direction is taken away in float64, and rounded to float32 and to the format. A gain of -1
    flips signs and a gain of 0 writes zeros, so both are exact whatever the values. A mask is no product: it writes the
    lowest number. `tensor` itself, which may be a memory map of the checkpoint, isn't touched; device, shape and format
    stay.

    Args:
        tensor: the checkpoint's tensor, of `edit`'s shape and format.
        edit: what to do.

    Raises:
        CheckpointError: the tensor isn't the one that was planned.
        SurgeryError: a product is too large for the format, or a factor is to scale NaN. Weights that were infinite
            before may stay so.
    """
    if tuple(tensor.shape) != edit.shape or dtype_word(tensor.dtype) != edit.dtype:
        raise CheckpointError(
            f"{edit.tensor}: planned for {edit.dtype} {list(edit.shape)}, "
            f"got {dtype_word(tensor.dtype)} {list(tensor.shape)}"
        )
    edited = tensor.clone()
    if MASK in edit.gains:  # Then there is nothing else: no gain goes on a router's bias.
        return edited.index_fill_(edit.axis or 0, torch.tensor(edit.indices, device=tensor.device), LOWEST[edit.dtype])
    target, original = (_sliceable(whole, edit) for whole in (edited, tensor))
    scaled, projected = _apart(edit)
    for first in range(0, len(scaled.indices), step := _slices_at_once(edit)):
        _edit_slices(original, target, scaled, slice(first, first + step))
    for projection, columns in projected.items():
        for first in range(0, len(columns), step := _slices_at_once(edit)):
            _project_columns(original, target, edit, projection, columns[first : first + step])
    for expert, inner in edit.inside:
        edited[expert].copy_(apply_edit(tensor[expert], inner))
    return edited


def _apart(edit: TensorEdit) -> tuple[TensorEdit, dict[Projection, list[int]]]:
    """The factors of an edit, and the columns that lose each direction."""
    pairs = list(zip(edit.indices, edit.gains, strict=True))
    scaled = [(index, gain) for index, gain in pairs if not isinstance(gain, Projection)]
    projected: dict[Projection, list[int]] = defaultdict(list)
    for index, gain in pairs:
        if isinstance(gain, Projection):
            projected[gain].append(index)
    indices, gains = tuple(index for index, _ in scaled), tuple(gain for _, gain in scaled)
    return replace(edit, indices=indices, gains=gains), projected


def _project_columns(
    original: torch.Tensor, edited: torch.Tensor, edit: TensorEdit, projection: Projection, columns: list[int]
) -> None:
    indices = torch.tensor(columns, device=original.device)
    before = original.index_select(1, indices)
    if not bool(before.isfinite().all()):
        raise SurgeryError(f"{edit.tensor}: holds a weight that isn't finite, from which no direction can be taken")
    wide = before.to(torch.float64)
    direction = direction_of(projection, original.device)
    removed = direction.unsqueeze(1) * responses(wide, projection)
    after = (wide - removed).to(before.dtype if before.dtype == torch.float64 else torch.float32).to(before.dtype)
    if not bool(after.isfinite().all()):
        raise SurgeryError(f"{edit.tensor}: the edit makes weights too large for {edit.dtype}; use a smaller strength")
    edited.index_copy_(1, indices, after)


def direction_of(projection: Projection, device: torch.device | str = "cpu") -> torch.Tensor:
    """The direction of a projection, ``[hidden]`` in float64, as it is stored."""
    return torch.from_numpy(projection.direction.values).to(device, torch.float64)


def responses(columns: torch.Tensor, projection: Projection) -> torch.Tensor:
    """How much of the direction each column loses: ``strength * (u . w) / (u . u)``, ``[columns]`` in float64.

    The products of float32 numbers are exact in float64, and their sum is taken in one order whatever the machine: so a
    checkpoint that is baked on one holds the same bits as a server on another.

    Args:
        columns: of a down projection, ``[hidden, columns]`` in float64.
        projection: the direction and its strength.
    """
    direction = direction_of(projection, columns.device).unsqueeze(1)
    return ordered_sum(columns * direction) * projection.strength / ordered_sum(direction * direction)


def ordered_sum(rows: torch.Tensor) -> torch.Tensor:
    """The sum of the rows of a matrix, halved again and again, so that every machine adds in the same order."""
    while len(rows) > 1:
        half = len(rows) // 2
        rest = rows[2 * half :]
        rows = torch.cat([rows[:half] + rows[half : 2 * half], rest])
    return rows[0]


def _sliceable(tensor: torch.Tensor, edit: TensorEdit) -> torch.Tensor:
    """`tensor` with an axis to pick slices along, and as bytes where torch can't pick slices of its format."""
    whole = tensor.unsqueeze(0) if edit.axis is None else tensor
    return bits(whole) if whole.element_size() == 1 else whole


def _slices_at_once(edit: TensorEdit) -> int:
    slices = 1 if edit.axis is None else edit.shape[edit.axis]
    return max(1, _NUMBERS_AT_ONCE * slices // max(1, math.prod(edit.shape)))


def _edit_slices(original: torch.Tensor, edited: torch.Tensor, edit: TensorEdit, some: slice) -> None:
    axis = edit.axis or 0
    indices = torch.tensor(edit.indices[some], device=original.device)
    gains = torch.tensor(edit.gains[some], dtype=torch.float64, device=original.device)
    slices = original.index_select(axis, indices)
    factors = gains.view([-1 if axis == other else 1 for other in range(original.dim())])
    if slices.element_size() > 1 and bool((slices.isnan() & (factors != 0) & (factors != -1)).any()):
        raise SurgeryError(f"{edit.tensor}: holds NaN where a factor should scale it; only negate and zero change that")
    scaled = _scaled(slices, factors) if slices.element_size() > 1 else _scaled_bytes(slices, factors, edit)
    # A factor of at most 1 makes no weight larger, so it needs no look at each.
    if bool((gains.abs() > 1).any()) and bool((slices.isfinite() & ~scaled.isfinite()).any()):
        raise SurgeryError(f"{edit.tensor}: the edit makes weights too large for {edit.dtype}; use a smaller factor")
    edited.index_copy_(axis, indices, scaled)


def _scaled_bytes(slices: torch.Tensor, gains: torch.Tensor, edit: TensorEdit) -> torch.Tensor:
    try:
        return scaled_bytes(slices, gains, edit.numbers)
    except SurgeryError as error:
        raise SurgeryError(f"{edit.tensor}: {error}") from None


def _scaled(slices: torch.Tensor, gains: torch.Tensor) -> torch.Tensor:
    wide = torch.float64 if slices.dtype == torch.float64 else torch.float32
    gains = gains.to(wide)
    product = (slices.to(wide) * gains).to(slices.dtype)
    if bool((gains == -1).any()):
        product = torch.where(gains == -1, _negated(slices), product)
    if bool((gains == 0).any()):
        product = torch.where(gains == 0, torch.zeros_like(slices), product)
    return product


def _negated(slices: torch.Tensor) -> torch.Tensor:
    """`slices` with every sign bit flipped. torch's own `neg` loses the payload of a 16-bit NaN."""
    flipped = bits(slices) ^ torch.iinfo(bits(slices).dtype).min
    return flipped.view(slices.dtype)
