# SPDX-License-Identifier: Apache-2.0
"""The direction that some columns of a down projection lost, if they lost one.

Columns that lose a direction u change by multiples of it, each by ``-strength * (u . w)``, with one strength for all:
two or more columns that fit this say so by themselves. Rounding of the edited weights hides some digits of u, so what
is found gives the edited weights back but for last places. A direction that is known beforehand (a bake writes down
what it did) is tried first; with the right one every bit is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from vllm_surgery.errors import SurgeryError
from vllm_surgery.patch.direction import Direction, Projection
from vllm_surgery.planning.planner import TensorEdit
from vllm_surgery.weights.arithmetic import apply_edit
from vllm_surgery.weights.tensors import bits, dtype_word

if TYPE_CHECKING:
    from collections.abc import Sequence

_MOST_DIGITS = 7
"""Of a strength. Seven tell nearly every float32 from its neighbours."""
_LEAST_COLUMNS = 2
_ROUNDS = 8  # Of a power iteration, whose error shrinks each time by the square of rounding's share: two would do.


@dataclass(frozen=True)
class Lost:
    """What some columns lost.

    Attributes:
        columns: ascending.
        off: how many weights of these columns are other than the projection makes them, by rounding.
    """

    projection: Projection
    columns: tuple[int, ...]
    off: int = 0


def known_loss(
    before: torch.Tensor, after: torch.Tensor, different: Sequence[int], hints: Sequence[Lost]
) -> Lost | None:
    """The first of some guesses that gives the edited columns bit for bit.

    Args:
        before: a down projection, ``[hidden, neurons]``, in a plain number format.
        after: the edited one.
        different: columns that aren't what a gain makes of them.
        hints: guesses.
    """
    for hint in hints:
        here = [column for column in hint.columns if column < before.shape[1]]
        if set(different) <= set(here) and len(hint.projection.direction) == before.shape[0]:
            made = _made(before, hint.projection, here)
            if made is not None and torch.equal(bits(made), bits(after[:, here].contiguous())):
                return Lost(hint.projection, tuple(here))
    return None


def found_loss(before: torch.Tensor, after: torch.Tensor, columns: Sequence[int]) -> Lost | None:
    """The direction that all of these columns lost, found by the rank of their difference; None where there is none.

    Args:
        before: a down projection, ``[hidden, neurons]``, in a plain number format.
        after: the edited one.
        columns: in which they differ, ascending.
    """
    if len(columns) < _LEAST_COLUMNS:
        return None
    old, new = (side[:, list(columns)].double() for side in (before, after))
    if not bool(old.isfinite().all()) or not bool(new.isfinite().all()):
        return None
    change = new - old
    direction = Direction.of(_common(change).numpy())
    u = torch.from_numpy(direction.values).double()
    given_up, held = -(u @ change), u @ old
    energy = float(held @ held)
    if energy == 0:
        return None
    strength = float(given_up @ held) / energy
    for digits in range(1, _MOST_DIGITS + 1):
        projection = Projection(direction, float(f"{strength:.{digits}g}"))
        off = _off(before, after, projection, columns)
        if off is not None:
            return Lost(projection, tuple(columns), off)
    return None


def _common(change: torch.Tensor) -> torch.Tensor:
    """The direction in which columns lie that are multiples of one vector, but for rounding."""
    common = change[:, int(change.square().sum(dim=0).argmax())]
    for _ in range(_ROUNDS):
        common = change @ (common @ change)
        common = common / common.norm()
    return common


def _off(before: torch.Tensor, after: torch.Tensor, projection: Projection, columns: Sequence[int]) -> int | None:
    """How many weights are off by rounding; None where one is off by more."""
    if projection.strength == 0:
        return None
    made = _made(before, projection, columns)
    if made is None:
        return None
    old, target = before[:, list(columns)].double(), after[:, list(columns)]
    # What is known of the direction comes from weights that were rounded to a step of the column's largest.
    step = torch.finfo(before.dtype).eps * torch.maximum(old.abs(), target.double().abs()).amax(dim=0)
    if bool(((made.double() - target.double()).abs() > step).any()):
        return None
    return int((bits(made) != bits(target.contiguous())).sum())


def _made(before: torch.Tensor, projection: Projection, columns: Sequence[int]) -> torch.Tensor | None:
    """The columns that `apply_edit` makes; None where it refuses."""
    chosen = before[:, list(columns)].contiguous()
    each = tuple(range(len(columns)))
    edit = TensorEdit("", dtype_word(before.dtype), tuple(chosen.shape), 1, each, (projection,) * len(each))
    try:
        return apply_edit(chosen, edit)
    except SurgeryError:
        return None
