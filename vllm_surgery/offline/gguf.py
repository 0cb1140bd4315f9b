# SPDX-License-Identifier: Apache-2.0
"""Patched copies of GGUF files, and the patch between two of them, for llama.cpp, Ollama and whoever else reads these.

Nothing is quantised anew: blocks keep their codes, and only scales of the edited rows change.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vllm_surgery.atomic_files import atomic_file
from vllm_surgery.errors import CheckpointError, UsageError
from vllm_surgery.model.gguf_file import ENDING
from vllm_surgery.offline.bake import copy_file
from vllm_surgery.offline.diff import Diff, Unexplained
from vllm_surgery.offline.recover import recover_gains
from vllm_surgery.patch.units import Unit
from vllm_surgery.planning.gguf import plan_gguf
from vllm_surgery.weights.gguf_blocks import apply_gains, factors_of, map_slices, why_unsupported

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from vllm_surgery.model.gguf_file import GgufTensor
    from vllm_surgery.model.gguf_model import GgufCarrier, GgufModel
    from vllm_surgery.patch.patch_set import PatchSet
    from vllm_surgery.patch.units import Block

_BYTES_AT_ONCE = 1 << 24  # That are compared.


@dataclass(frozen=True)
class BakedGguf:
    """The result of a bake.

    Attributes:
        file: the patched copy.
        id: of the patches.
        units: neurons and experts that got a gain.
        tensors: how many were changed.
    """

    file: Path
    id: str
    units: int
    tensors: int


def bake_gguf(patches: PatchSet, model: GgufModel, out: Path, *, progress: bool = False) -> BakedGguf:
    """Writes a copy of a GGUF file with `patches` in it. The copy appears whole or not at all.

    Args:
        patches: gains of neurons and experts.
        model: where from; the file isn't touched.
        out: where to; nothing may be there.
        progress: whether to show a bar on stderr.

    Raises:
        UsageError: `out` is taken, or isn't called like a GGUF file.
        SurgeryError: the patches are not for this model, a type can't hold them, or `out` can't be written.
    """
    if out.suffix != ENDING:
        raise UsageError(f"{out}: the copy of a GGUF file needs a name that ends in {ENDING}")
    if out.exists() or out.is_symlink():
        raise UsageError(f"{out}: already exists")
    plan = plan_gguf(patches, model, why_unsupported)
    with atomic_file(out) as aside:
        copy_file(model.path, aside, progress=progress)
        for edit in plan.edits:
            apply_gains(map_slices(aside, edit.tensor, "r+"), edit.tensor, edit.gains)
    return BakedGguf(out, plan.id, plan.units, len(plan.edits))


def diff_gguf(base: GgufModel, edited: GgufModel) -> Diff:
    """Compares two GGUF files of one model that are stored alike.

    Raises:
        CheckpointError: they have not the same tensors, or types.
    """
    ours, theirs = ({name: _kind(one) for name, one in model.file.tensors.items()} for model in (base, edited))
    for name in sorted({*ours, *theirs}):
        if ours.get(name) != theirs.get(name):
            raise CheckpointError(
                f"{edited.path}: {name} is {theirs.get(name, 'not there')}, in {base.path} it is "
                f"{ours.get(name, 'not there')}; only files that are stored alike can be compared"
            )
    return _Comparison(base, edited).run()


def _kind(tensor: GgufTensor) -> str:
    return f"{tensor.type.name} {list(tensor.shape)}"


def _own(indices: list[int], carrier: GgufCarrier) -> slice:
    """Where, among ascending indices of its tensor's slices, those of a block's units are."""
    return slice(bisect_left(indices, carrier.first), bisect_left(indices, carrier.first + carrier.count))


class _Comparison:
    def __init__(self, base: GgufModel, edited: GgufModel) -> None:
        self._base, self._edited = base, edited
        self._result = Diff()

    def run(self) -> Diff:
        different = {
            name: indices for name, tensor in self._base.tensors.items() if (indices := self._differing(tensor))
        }
        for block in self._base.blocks():
            self._explain(block, different)
        for name, indices in different.items():
            self._unexplained(name, indices)
        return self._result

    def _slices(self, tensor: GgufTensor) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        theirs = self._edited.tensors[tensor.name]
        return map_slices(self._base.path, tensor), map_slices(self._edited.path, theirs)

    def _differing(self, tensor: GgufTensor) -> list[int]:
        """The slices along the first axis in which the files differ."""
        old, new = self._slices(tensor)
        step = max(1, _BYTES_AT_ONCE // max(1, old.shape[1]))
        pieces = ((first, old[first : first + step], new[first : first + step]) for first in range(0, len(old), step))
        return [first + int(index) for first, one, other in pieces for index in np.flatnonzero((one != other).any(1))]

    def _explain(self, block: Block, different: dict[str, list[int]]) -> None:
        """Takes the gains of one block's units, and what they explain out of `different`."""
        carrier = self._base.carrier(block)
        left = different.get(carrier.tensor.name, [])
        indices = left[_own(left, carrier)]
        whole = (block.layer, block.expert) in self._result.experts  # Then the patch names no neuron inside it.
        if not indices or whole or why_unsupported(carrier.tensor) is not None:
            return
        gains = self._gains(carrier.tensor, indices)
        if carrier.bias is not None:
            gains = {index: gain for index, gain in gains.items() if self._made(carrier.bias, index, gain)}
        for index, gain in gains.items():
            self._result.take(Unit(block.kind, block.layer, index - carrier.first, block.expert), gain)
        for tensor in filter(None, (carrier.tensor, carrier.bias)):
            left = different.get(tensor.name, [])
            left[_own(left, carrier)] = [index for index in left[_own(left, carrier)] if index not in gains]

    def _gains(self, tensor: GgufTensor, indices: list[int]) -> dict[int, float]:
        """The gain of each slice whose scales alone changed, all by one factor."""
        old, new = (slices[indices] for slices in self._slices(tensor))
        gains = recover_gains(factors_of(old, tensor), factors_of(new, tensor), 0, range(len(indices)))
        pairs = zip(indices, gains, strict=True)
        return {index: gain for index, gain in pairs if gain is not None and self._made(tensor, index, gain)}

    def _made(self, tensor: GgufTensor, index: int, gain: float) -> bool:
        old, new = self._slices(tensor)
        made = old[index : index + 1].copy()
        apply_gains(made, tensor, {0: float(np.float32(gain))})
        return bool(np.array_equal(made[0], new[index]))

    def _unexplained(self, name: str, indices: list[int]) -> None:
        if indices:
            numbers = math.prod(self._base.tensors[name].shape[1:]) * len(indices)
            reason = f"{len(indices)} slice(s) changed by more than a gain"
            self._result.unexplained.append(Unexplained(name, reason, numbers))
