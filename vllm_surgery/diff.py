# SPDX-License-Identifier: Apache-2.0
"""Finding the patch that turns one checkpoint into another, streaming over both.

Tensors that are equal byte for byte are read once and never decoded. What no patch can say is listed, tensor by tensor.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from vllm_surgery.anatomy import PLAIN_DTYPES, Anatomy
from vllm_surgery.errors import CheckpointError
from vllm_surgery.guard import guard_of
from vllm_surgery.patch import Patch
from vllm_surgery.recover import differing_slices, recover_gains
from vllm_surgery.tensors import read_tensor

if TYPE_CHECKING:
    from io import FileIO

    from vllm_surgery.anatomy import Slot
    from vllm_surgery.checkpoint import ModelFolder, StoredTensor

_CHUNK_BYTES = 1 << 20  # Of each file at a time: both chunks fit a processor's cache.
# The roots under which model classes put the same text model, in the order in which they are tried.
_ROOT = re.compile(r"^(?:model\.language_model\.|language_model\.model\.|language_model\.|model\.)")


@dataclass(frozen=True)
class Unexplained:
    """A difference that no patch can say.

    Attributes:
        tensor: its name in the edited checkpoint, or in the base where only that has it.
        reason: what is different.
        numbers: how many of its numbers are concerned.
    """

    tensor: str
    reason: str
    numbers: int


@dataclass
class Diff:
    """What turns one checkpoint into another.

    Attributes:
        gains: a factor for each neuron, by layer and index.
        unexplained: what no patch can say.
        notes: what is worth knowing and changes nothing.
    """

    gains: dict[tuple[int, int], float] = field(default_factory=dict)
    unexplained: list[Unexplained] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def patch(self, name: str, base: ModelFolder, **more: Any) -> Patch | None:
        """The differences as a patch for `base`, guarded by what `base` is. None where there are none."""
        if not self.gains:
            return None
        layers: dict[float, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for (layer, index), gain in sorted(self.gains.items()):
            layers[gain][str(layer)].append(index)
        edits = [_edit(gain, neurons) for gain, neurons in layers.items()]
        return Patch.from_data({"version": 1, "name": name, "model": guard_of(base), "edits": edits, **more}, name)


def _edit(gain: float, neurons: dict[str, list[int]]) -> dict[str, Any]:
    if gain in (-1.0, 0.0):
        return {"op": "negate" if gain else "zero", "neurons": neurons}
    return {"op": "scale", "factor": gain, "neurons": neurons}


def diff(base: ModelFolder, edited: ModelFolder, *, progress: bool = False) -> Diff:
    """Compares two checkpoints of one model.

    Raises:
        CheckpointError: a file can't be read, or the two have no tensor in common.
    """
    return _Comparison(base, edited).run(progress)


class _Comparison:
    def __init__(self, base: ModelFolder, edited: ModelFolder) -> None:
        self._base, self._edited = _by_key(base), _by_key(edited)
        if not self._base.keys() & self._edited.keys():
            raise CheckpointError(f"{edited.path}: has no tensor in common with {base.path}")
        self._anatomy = Anatomy(base.facts.num_hidden_layers)
        self._result = Diff()
        self._parts: dict[tuple[int, int], list[float]] = defaultdict(list)
        self._rows: dict[str, int] = defaultdict(int)
        self._formats: dict[tuple[str, str], int] = defaultdict(int)

    def run(self, progress: bool) -> Diff:
        common = [(stored, self._edited[key]) for key, stored in self._base.items() if key in self._edited]
        total = sum(stored.size for stored, _ in common)
        with tqdm(total=total, unit="B", unit_scale=True, desc="comparing", disable=None if progress else True) as bar:
            for before, after in common:
                self._compare(before, after)
                bar.update(before.size)
        self._only_one_side()
        products = {unit: math.prod(gains) + 0.0 for unit, gains in self._parts.items()}
        self._result.gains = {unit: gain for unit, gain in products.items() if gain != 1}
        self._take_notes()
        return self._result

    def _compare(self, before: StoredTensor, after: StoredTensor) -> None:
        slot = self._anatomy.observe(before.info)
        if before.info.shape != after.info.shape:
            shapes = f"has the shape {list(after.info.shape)}, was {list(before.info.shape)}"
            self._unexplained(after, shapes, math.prod(after.info.shape))
        elif before.info.dtype != after.info.dtype:
            self._formats[before.info.dtype, after.info.dtype] += 1
            self._compare_values(slot, before, after)
        elif not _same_bytes(before, after):
            self._compare_values(slot, before, after)

    def _compare_values(self, slot: Slot | None, before: StoredTensor, after: StoredTensor) -> None:
        formats = {before.info.dtype, after.info.dtype}
        if not formats <= PLAIN_DTYPES:
            self._unexplained(after, f"differs, and is stored as {' and '.join(sorted(formats))}", before.size)
            return
        new = read_tensor(after)
        old = read_tensor(before).to(new.dtype)
        if slot is None or len(before.info.shape) != 2:  # noqa: PLR2004 - a matrix
            changed = int((old != new).sum())
            if changed:
                self._unexplained(after, "holds no unit that a patch can name", changed)
            return
        self._explain(slot, after, old, new)

    def _explain(self, slot: Slot, after: StoredTensor, old: torch.Tensor, new: torch.Tensor) -> None:
        axis = slot.part.unit_axis
        indices = differing_slices(old, new, axis)
        strange = []
        for index, gain in zip(indices, recover_gains(old, new, axis, indices), strict=True):
            # A gate of zero silences its neuron, since act(0) = 0; any other change of a gate is no gain.
            if gain is None or (slot.part.role == "gate" and gain != 0):
                strange.append(index)
                continue
            self._parts[slot.layer, index].append(gain)
            self._rows[slot.part.role] += 1
        if strange:
            word = "column" if axis else "row"
            shown = ", ".join(map(str, strange[:5])) + (", …" if len(strange) > 5 else "")  # noqa: PLR2004 - a few
            chosen = torch.tensor(strange)
            changed = int((old.index_select(axis, chosen) != new.index_select(axis, chosen)).sum())
            self._unexplained(after, f"{len(strange)} {word}(s) ({shown}) changed by more than a gain", changed)

    def _unexplained(self, stored: StoredTensor, reason: str, numbers: int) -> None:
        self._result.unexplained.append(Unexplained(stored.info.name, reason, numbers))

    def _only_one_side(self) -> None:
        for mine, other, word in ((self._base, self._edited, "base"), (self._edited, self._base, "edited")):
            for key in sorted(mine.keys() - other.keys()):
                self._unexplained(mine[key], f"is in the {word} checkpoint alone", math.prod(mine[key].info.shape))

    def _take_notes(self) -> None:
        for (old, new), count in self._formats.items():
            self._result.notes.append(f"{count} tensor(s) are stored as {new}, were {old}; compared as {new}")
        for role in ("up", "gate"):
            if self._rows[role]:
                self._result.notes.append(
                    f"{self._rows[role]} gain(s) stand on rows of {role} projections; from the down projection, where "
                    "a patch puts them, they give the same outputs"
                )


def _by_key(model: ModelFolder) -> dict[str, StoredTensor]:
    """Tensors by their names without the root that a model class puts before them."""
    return {_ROOT.sub("", name): stored for name, stored in model.stored.items()}


def _same_bytes(one: StoredTensor, other: StoredTensor) -> bool:
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
