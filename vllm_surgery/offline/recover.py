# SPDX-License-Identifier: Apache-2.0
"""The gain that turns one slice of weights into another, if there is one.

Each weight allows an interval of gains: those whose product with it rounds to the edited weight. A slice's gain lies in
all of its weights' intervals, and the shortest decimal number in there that gives the edited slice back, bit for bit,
is taken: it is what a person would have written.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch

from vllm_surgery.errors import CheckpointError, SurgeryError
from vllm_surgery.planning.planner import TensorEdit, edit_of_factors
from vllm_surgery.weights.arithmetic import apply_edit
from vllm_surgery.weights.codes import recovered_factor
from vllm_surgery.weights.tensors import bits, dtype_word, read_tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from io import FileIO

    from numpy.typing import NDArray

    from vllm_surgery.model.checkpoint import StoredTensor
    from vllm_surgery.planning.carriers import Carrier, Component

    Factors: TypeAlias = dict[Component, float]
    Strange: TypeAlias = list[tuple[StoredTensor, int]]
    Doubles: TypeAlias = NDArray[np.float64]

# Numbers that are looked at together. Searching takes some ten float64 copies of them, so this bounds it to 500 MB
# where a slice isn't larger by itself.
_NUMBERS_AT_ONCE = 1 << 22
# A float32 is told apart from every other by this many significant decimal digits.
_DIGITS_OF_FLOAT32 = 9
# The product is rounded to float32 before it is rounded to the weights' format, which can move an end of an interval
# by half a unit of float32's last place, relative 2**-24; twice that leaves room for this computation's own rounding.
_SLACK = 2.0**-23


def recover_gains(before: torch.Tensor, after: torch.Tensor, axis: int, indices: Sequence[int]) -> list[float | None]:
    """For each slice of `before`, the gain with which `apply_edit` makes `after`'s slice of it.

    Args:
        before: the original tensor, in a plain number format.
        after: the edited one, of the same shape and format.
        axis: the axis that `indices` count along: of a matrix 0 for rows, 1 for columns.
        indices: slices in which the two differ.

    Returns:
        A gain for each index; None where there is none.
    """
    step = max(1, _NUMBERS_AT_ONCE * before.shape[axis] // max(1, before.numel()))
    gains: list[float | None] = []
    for first in range(0, len(indices), step):
        chosen = torch.tensor(indices[first : first + step], dtype=torch.int64)
        old, new = before.index_select(axis, chosen), after.index_select(axis, chosen)
        gains += _recovered(_upright(old, axis), _upright(new, axis))
    return gains


def recover_joint_gains(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> dict[int, float | None]:
    """The one gain of each unit that has a slice along the first axis of several tensors.

    Args:
        before: the original tensors, all in one plain number format.
        after: the edited ones, of the same shapes and format.

    Returns:
        For each index at which any of them differs a gain that explains all; None where there is none.
    """
    different = [differing_slices(old, new, 0) for old, new in zip(before, after, strict=True)]
    return {index: _joint_gain(before, after, index) for index in sorted(set().union(*different))}


def _joint_gain(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor], index: int) -> float | None:
    old, new = (torch.cat([tensor[index].flatten() for tensor in side]).unsqueeze(0) for side in (before, after))
    return _recovered(old, new)[0]


def _recovered(old: torch.Tensor, new: torch.Tensor) -> list[float | None]:
    """The gain of each row."""
    rows, edited_rows = _doubles(old), _doubles(new)
    # Zeros count whatever their sign: a person's `weights * 0.0` has some with one, and computes the same.
    gains: list[float | None] = [0.0 if silent else None for silent in (edited_rows == 0).all(axis=1)]
    # A flipped sign is exact whatever the weights are, so it comes before anything that is searched for.
    guesses = [np.full(len(gains), -1.0), *_shortest_decimals(*_intervals(rows, edited_rows, old.dtype))]
    for guess in guesses:
        candidates = [number for number, gain in enumerate(gains) if gain is None and np.isfinite(guess[number])]
        for number in _confirmed(old, new, {number: float(guess[number]) for number in candidates}):
            gains[number] = float(guess[number])
    return gains


def _confirmed(old: torch.Tensor, new: torch.Tensor, gains: dict[int, float]) -> list[int]:
    """The rows that `apply_edit` with these gains turns from `old` into `new`, exactly."""
    if not gains:
        return []
    numbers = list(gains)
    rounded = tuple(float(np.float32(gain)) for gain in gains.values())
    edit = TensorEdit("", dtype_word(old.dtype), tuple(old.shape), 0, tuple(numbers), rounded)
    try:
        made = apply_edit(old, edit)
    except SurgeryError:  # Too large for the format, or NaN that can't be scaled: in one of the rows, not in all.
        return [] if len(gains) == 1 else [one for one in gains if _confirmed(old, new, {one: gains[one]})]
    return [number for number in numbers if torch.equal(bits(made[number]), bits(new[number]))]


def differing_slices(before: torch.Tensor, after: torch.Tensor, axis: int) -> list[int]:
    """The slices in which two tensors of one shape and format differ by any bit."""
    different = _upright(bits(before) != bits(after), axis).any(dim=1)
    return [int(index) for index in different.nonzero().flatten()]


def _upright(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    """The slices of a tensor as rows of a matrix."""
    return tensor.movedim(axis, 0).flatten(1) if tensor.dim() > 1 else tensor.unsqueeze(1)


def _doubles(rows: torch.Tensor) -> Doubles:
    doubles: Doubles = rows.to(torch.float64).contiguous().numpy()
    return doubles


def _intervals(old: Doubles, new: Doubles, dtype: torch.dtype) -> tuple[Doubles, Doubles]:
    """Lower and upper end of the gains that each row allows. They cross where there is none."""
    half_step = _half_steps(new, dtype)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ends = np.stack([(new - half_step) / old, (new + half_step) / old])
    silent = (old == 0) | ~np.isfinite(old) | ~np.isfinite(new)  # These say nothing about the gain.
    low = np.where(silent, -np.inf, ends.min(axis=0)).max(axis=1)
    high = np.where(silent, np.inf, ends.max(axis=0)).min(axis=1)
    return low - np.abs(low) * _SLACK, high + np.abs(high) * _SLACK


def _half_steps(values: Doubles, dtype: torch.dtype) -> Doubles:
    """Half the distance from each value to its neighbour in `dtype`."""
    info = torch.finfo(dtype)
    _, exponents = np.frexp(np.abs(values))
    step = np.ldexp(info.eps, exponents - 1)
    smallest = info.tiny * info.eps
    return np.asarray(np.maximum(step, smallest) / 2, dtype=np.float64)


def _shortest_decimals(low: Doubles, high: Doubles) -> list[Doubles]:
    """Candidates of one digit, two digits and so on; NaN where a row has none of that length."""
    possible = (low <= high) & np.isfinite(low) & np.isfinite(high)
    middle = np.where(possible, np.where(possible, low, 0) / 2 + np.where(possible, high, 0) / 2, np.nan)
    candidates = []
    for digits in range(1, _DIGITS_OF_FLOAT32 + 1):
        rounded = np.array([float(f"{value:.{digits - 1}e}") for value in middle])
        candidates.append(np.where((rounded >= low) & (rounded <= high), rounded, np.nan))
    return candidates


_CHUNK_BYTES = 1 << 20  # Of each file at a time: both chunks fit a processor's cache.


def same_bytes(one: StoredTensor, other: StoredTensor) -> bool:
    """True if two tensors of the same size in bytes are equal.

    Raises:
        CheckpointError: a file ends before its tensor does.
    """
    left, right = bytearray(_CHUNK_BYTES), bytearray(_CHUNK_BYTES)
    with one.file.open("rb", buffering=0) as left_file, other.file.open("rb", buffering=0) as right_file:
        left_file.seek(one.start)
        right_file.seek(other.start)
        for start in range(0, one.size, _CHUNK_BYTES):
            length = min(_CHUNK_BYTES, one.size - start)
            _fill(left_file, left, length, one)
            _fill(right_file, right, length, other)
            if left != right:  # What a last, shorter chunk leaves behind its end is equal, or was found to differ.
                return False
    return True


def _fill(file: FileIO, buffer: bytearray, length: int, stored: StoredTensor) -> None:
    filled = 0
    while filled < length:
        count = file.readinto(memoryview(buffer)[filled:length])
        if not count:
            raise CheckpointError(f"{stored.file}: ends before {stored.info.name}")
        filled += count


@dataclass(frozen=True)
class Pair:
    """A tensor of a quantised block in both checkpoints, in one format and shape.

    Attributes:
        carrier: which share of gains it takes; None where it takes none.
    """

    carrier: Carrier | None
    before: StoredTensor
    after: StoredTensor


def explain(pairs: Sequence[Pair]) -> tuple[dict[int, float], Strange]:
    """The gains that make of one block's tensors what they are in the edited checkpoint.

    Args:
        pairs: all tensors of the block's units.

    Returns:
        A gain for each unit that has one, and the tensors which these gains don't explain, each with how many of its
        numbers differ from what they would be.
    """
    changed = [pair for pair in pairs if not same_bytes(pair.before, pair.after)]
    if not changed:
        return {}, []
    factors: dict[int, Factors] = defaultdict(dict)
    for pair in changed:
        for unit, factor in _factors(pair):
            assert pair.carrier is not None  # Else there are no shares.
            factors[unit][pair.carrier.component] = factor
    gains = {unit: _gain(found) for unit, found in factors.items()}
    strange = [(pair.after, wrong) for pair in pairs if (wrong := _unlike(pair, gains))]
    return gains, strange


def _factors(pair: Pair) -> Iterator[tuple[int, float]]:
    """The share of each unit whose slice differs and is a multiple of what it was."""
    if pair.carrier is None or pair.carrier.unsupported is not None:
        return
    old, new = (_sliceable(stored, pair.carrier) for stored in (pair.before, pair.after))
    axis = pair.carrier.axis or 0
    indices = differing_slices(old, new, axis)
    for index, factor in zip(indices, _multiples(pair.carrier, old, new, axis, indices), strict=True):
        if factor is not None:
            yield index - pair.carrier.first, factor


def _multiples(
    carrier: Carrier, old: torch.Tensor, new: torch.Tensor, axis: int, indices: list[int]
) -> list[float | None]:
    if carrier.encoding == "floats":
        return recover_gains(old, new, axis, indices)
    slices = ((bits(side.select(axis, index).contiguous()) for side in (old, new)) for index in indices)
    return [recovered_factor(before, after, carrier.encoding) for before, after in slices]


def _gain(factors: Factors) -> float:
    return factors["all"] if "all" in factors else factors.get("sign", 1.0) * factors.get("size", 1.0)


def _unlike(pair: Pair, gains: Mapping[int, float]) -> int:
    """In how many numbers a tensor is not what these gains make of the original."""
    expected = read_tensor(pair.before)
    if pair.carrier is not None and (factors := _own(pair.carrier, gains)):
        with suppress(SurgeryError):  # Beyond what the format holds, so it isn't what was done.
            expected = apply_edit(expected, edit_of_factors(pair.before.info, pair.carrier, factors))
    return int((bits(expected) != bits(read_tensor(pair.after))).sum())


def _own(carrier: Carrier, gains: Mapping[int, float]) -> dict[int, float]:
    factors = {unit: carrier.factor(gain) for unit, gain in gains.items()}
    return {unit: factor for unit, factor in factors.items() if factor != 1 and 0 <= unit < (carrier.width or 0)}


def _sliceable(stored: StoredTensor, carrier: Carrier) -> torch.Tensor:
    tensor = read_tensor(stored)
    return tensor.unsqueeze(0) if carrier.axis is None else tensor
