# SPDX-License-Identifier: Apache-2.0
"""The gains that turn some units of a quantised model into others: each is put together from its shares, and proved."""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from vllm_surgery.arithmetic import apply_edit
from vllm_surgery.errors import SurgeryError
from vllm_surgery.formats.numbers import recovered_share
from vllm_surgery.plan import edit_of_shares
from vllm_surgery.recover import differing_slices, recover_gains
from vllm_surgery.same_bytes import same_bytes
from vllm_surgery.tensors import bits, read_tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import torch

    from vllm_surgery.checkpoint import StoredTensor
    from vllm_surgery.formats.carriers import Carrier, Takes

    Shares: TypeAlias = dict[Takes, float]
    Strange: TypeAlias = list[tuple[StoredTensor, int]]


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
    shares: dict[int, Shares] = defaultdict(dict)
    for pair in changed:
        for unit, share in _shares(pair):
            assert pair.carrier is not None  # Else there are no shares.
            shares[unit][pair.carrier.takes] = share
    gains = {unit: _gain(found) for unit, found in shares.items()}
    strange = [(pair.after, wrong) for pair in pairs if (wrong := _unlike(pair, gains))]
    return gains, strange


def _shares(pair: Pair) -> Iterator[tuple[int, float]]:
    """The share of each unit whose slice differs and is a multiple of what it was."""
    if pair.carrier is None or pair.carrier.cannot is not None:
        return
    old, new = (_sliceable(stored, pair.carrier) for stored in (pair.before, pair.after))
    axis = pair.carrier.axis or 0
    indices = differing_slices(old, new, axis)
    for index, share in zip(indices, _multiples(pair.carrier, old, new, axis, indices), strict=True):
        if share is not None:
            yield index - pair.carrier.first, share


def _multiples(
    carrier: Carrier, old: torch.Tensor, new: torch.Tensor, axis: int, indices: list[int]
) -> list[float | None]:
    if carrier.numbers == "floats":
        return recover_gains(old, new, axis, indices)
    slices = ((bits(side.select(axis, index).contiguous()) for side in (old, new)) for index in indices)
    return [recovered_share(before, after, carrier.numbers) for before, after in slices]


def _gain(shares: Shares) -> float:
    return shares["all"] if "all" in shares else shares.get("sign", 1.0) * shares.get("size", 1.0)


def _unlike(pair: Pair, gains: Mapping[int, float]) -> int:
    """In how many numbers a tensor is not what these gains make of the original."""
    expected = read_tensor(pair.before)
    if pair.carrier is not None and (shares := _own(pair.carrier, gains)):
        with suppress(SurgeryError):  # Beyond what the format holds, so it isn't what was done.
            expected = apply_edit(expected, edit_of_shares(pair.before.info, pair.carrier, shares))
    return int((bits(expected) != bits(read_tensor(pair.after))).sum())


def _own(carrier: Carrier, gains: Mapping[int, float]) -> dict[int, float]:
    shares = {unit: carrier.share(gain) for unit, gain in gains.items()}
    return {unit: share for unit, share in shares.items() if share != 1 and 0 <= unit < (carrier.width or 0)}


def _sliceable(stored: StoredTensor, carrier: Carrier) -> torch.Tensor:
    tensor = read_tensor(stored)
    return tensor.unsqueeze(0) if carrier.axis is None else tensor
