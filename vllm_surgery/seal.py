# SPDX-License-Identifier: Apache-2.0
"""Seals: hashes of the original weights of the units that a patch edits.

They cover the bytes that the checkpoint stores, each part with its role, number format and length, and don't depend on
tensor names, on how the checkpoint is sharded, or on whether gate and up are stored in one tensor or in two.

- A neuron's covers its row of gate, its row of up and its column of down.
- An expert's covers its gate, up and down, its biases where it has some, and its scale where it has one. As an expert
  can be hundreds of megabytes, it is the hash of the parts' hashes.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from vllm_surgery.conventions import HALVES, lacking, locate
from vllm_surgery.errors import CheckpointError, MismatchError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_surgery.anatomy import TensorInfo
    from vllm_surgery.checkpoint import ModelFolder
    from vllm_surgery.conventions import Role, Slot
    from vllm_surgery.stack import PatchSet
    from vllm_surgery.units import Kind

    ReadSlice: TypeAlias = Callable[[int | None, int], bytes | memoryview]
    Unit: TypeAlias = tuple[Kind, int, int]

_ORDER: tuple[Role, ...] = ("gate", "up", "gate_up", "gate_up_bias", "down", "down_bias", "scale")


@dataclass(frozen=True)
class Sealed:
    """What a seal takes of one part of a unit: number format, length in bytes, and the bytes or their sha256."""

    dtype: str
    size: int
    content: bytes


def unit_hash(parts: dict[Role, Sealed]) -> str:
    """sha256, in hex, of a unit's original weights."""
    content = hashlib.sha256()
    for role in _ORDER:
        if role in parts:
            part = parts[role]
            content.update(f"{role} {part.dtype} {part.size}\n".encode())
            content.update(part.content)
    return content.hexdigest()


def seal_of_folder(folder: ModelFolder, layer: int, index: int, kind: Kind = "neurons") -> str:
    """The seal of one unit of a model on disk.

    Raises:
        CheckpointError: the folder can't be read, or holds no such unit.
    """
    parts: dict[Role, Sealed] = {}
    for info in folder.anatomy.tensors_of(kind, layer, index):
        slot = locate(info.name)
        assert slot is not None  # The anatomy has located it before.
        parts |= _parts(slot, info, index, partial(folder.read_slice, info.name))
    if missing := lacking(parts):
        block = "gated MLP" if kind == "neurons" else f"expert {index}"
        raise CheckpointError(f"{folder.path}: layer {layer} has no {block} (no {', '.join(missing)} projection)")
    return unit_hash(parts)


def _parts(slot: Slot, info: TensorInfo, index: int, read_slice: ReadSlice) -> dict[Role, Sealed]:
    """What one tensor holds of a unit, gate and up apart where they can be told apart."""
    part = slot.part
    if part.halves:
        width = part.width(info.shape)
        contents = {role: read_slice(part.unit_axis, index + number * width) for number, role in enumerate(HALVES)}
    elif part.split is not None:
        whole = read_slice(part.unit_axis, index)
        middle = len(whole) // 2
        contents = dict(zip(HALVES, (whole[:middle], whole[middle:]), strict=True))
    else:
        contents = {part.role: read_slice(part.unit_axis, 0 if part.unit_axis is None else index)}
    seal = _sealed_as_it_is if slot.kind == "neurons" else _sealed_by_hash
    return {role: seal(info.dtype, content) for role, content in contents.items()}


def _sealed_as_it_is(dtype: str, content: bytes | memoryview) -> Sealed:
    return Sealed(dtype, len(content), bytes(content))


def _sealed_by_hash(dtype: str, content: bytes | memoryview) -> Sealed:
    return Sealed(dtype, len(content), hashlib.sha256(content).digest())


class SealCheck:
    """Verifies every seal of some patches against tensors that come by one at a time."""

    def __init__(self, patches: PatchSet) -> None:
        self._wanted: dict[Unit, list[tuple[str, str]]] = defaultdict(list)
        self._parts: dict[Unit, dict[Role, Sealed]] = defaultdict(dict)
        self._indices: dict[tuple[Kind, int], list[int]] = defaultdict(list)
        for member in patches.members:
            for key, seal in member.patch.seal.items():
                unit = _unit(key)
                self._wanted[unit].append((member.source, seal))
                self._indices[unit[:2]].append(unit[2])

    def observe(self, slot: Slot, info: TensorInfo, read_slice: ReadSlice) -> None:
        """Takes what it needs of one tensor.

        Args:
            slot: what the tensor is.
            info: its name, format and shape.
            read_slice: gives the bytes of a slice of it, by axis and index; of the whole tensor for axis None.
        """
        for index in self._indices.get((slot.kind, slot.layer), ()):
            if _holds(slot, info, index):  # Where it doesn't, the planner says what is wrong, in better words.
                self._parts[slot.kind, slot.layer, index] |= _parts(slot, info, index, read_slice)

    def finish(self) -> None:
        """Compares.

        Raises:
            MismatchError: a unit's weights are not those that were sealed, or were never seen.
        """
        for unit, seals in self._wanted.items():
            parts = self._parts[unit]
            actual = None if lacking(parts) else unit_hash(parts)
            for source, seal in seals:
                if seal != actual:
                    reason = (
                        f"the model's weights are not the sealed ones ({actual[:12]}… against {seal[:12]}…)"
                        if actual
                        else f"of the unit's parts only {', '.join(parts) or 'none'} can be read"
                    )
                    raise MismatchError(source, f"seal.{'/'.join(map(str, unit))}", f"broken: {reason}")


def _unit(key: str) -> Unit:
    kind, layer, index = key.split("/")
    return "neurons" if kind == "neurons" else "experts", int(layer), int(index)


def _holds(slot: Slot, info: TensorInfo, index: int) -> bool:
    if len(info.shape) != slot.part.rank:
        return False
    return index < slot.part.width(info.shape) if slot.expert is None else index == slot.expert
