# SPDX-License-Identifier: Apache-2.0
"""Seals: hashes of the original weights of the units that a patch edits.

They cover the bytes that the checkpoint stores, each part with its role, number format and length, and don't depend on
tensor names, on how the checkpoint is sharded, or on whether gate and up are stored in one tensor or in two.

- A neuron's covers its row of gate, its row of up and its column of down; a shared expert's neuron's the same, and that
  of a neuron inside a routed expert. Where all experts share a tensor, names don't tell which rows of gate and up are
  the neuron's: then its seal covers its expert's gate and up whole, by their hash, biases included.
- An expert's covers its gate, up and down, its biases where it has some, and its scale where it has one. As an expert
  can be hundreds of megabytes, it is the hash of the parts' hashes.
- Of a quantised weight it covers codes, scales, zero points and the order of groups: see `vllm_surgery.planning.seal`.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from vllm_surgery.errors import CheckpointError, MismatchError
from vllm_surgery.model.conventions import HALVES, classify_tensor, lacking
from vllm_surgery.model.expert_neurons import matrix_inside, role_inside
from vllm_surgery.model.quantization import WHOLE, Stores
from vllm_surgery.patch.units import Unit

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_surgery.model.checkpoint import ModelFolder
    from vllm_surgery.model.config import ModelFacts
    from vllm_surgery.model.conventions import BlockKind, PartName, TensorRole
    from vllm_surgery.model.quantization import Scheme
    from vllm_surgery.model.tensor_info import TensorInfo
    from vllm_surgery.patch.patch_set import PatchSet

    ReadSlice: TypeAlias = Callable[[int | None, int], bytes | memoryview]
    Parts: TypeAlias = dict[tuple[PartName, Stores], "Sealed"]

_ORDER: tuple[PartName, ...] = ("gate", "up", "gate_up", "gate_up_bias", "down", "down_bias", "scale")
_STORES: tuple[Stores, ...] = (*WHOLE, "scales", "zeros", "order")


@dataclass(frozen=True)
class Sealed:
    """The sealed content of one part of a unit: number format, length in bytes, and the bytes or their sha256."""

    dtype: str
    size: int
    content: bytes


def unit_hash(parts: Parts) -> str:
    """sha256, in hex, of a unit's original weights."""
    content = hashlib.sha256()
    for part_name, stores in product(_ORDER, _STORES):
        if (part_name, stores) in parts:
            part = parts[part_name, stores]
            word = part_name if stores in WHOLE else f"{part_name} {stores}"
            content.update(f"{word} {part.dtype} {part.size}\n".encode())
            content.update(part.content)
    return content.hexdigest()


def seal_of_folder(folder: ModelFolder, unit: Unit) -> str:
    """The seal of one unit of a model on disk.

    Raises:
        CheckpointError: the folder can't be read, or holds no such unit.
    """
    parts: Parts = {}
    for info in folder.anatomy.tensors_of(unit):
        role = classify_tensor(info.name)
        assert role is not None  # The anatomy has classified it before.
        parts |= _parts(role, info, unit, partial(folder.read_slice, info.name), folder.facts)
    if missing := _lacking(parts):
        number = unit.index if unit.expert is None else unit.expert
        block = {"neurons": "gated MLP", "shared": "shared expert"}.get(unit.kind, f"expert {number}")
        raise CheckpointError(f"{folder.path}: layer {unit.layer} has no {block} (no {', '.join(missing)} projection)")
    return unit_hash(parts)


def _lacking(parts: Parts) -> list[PartName]:
    return lacking(part_name for part_name, _ in parts)


def _parts(role: TensorRole, info: TensorInfo, unit: Unit, read_slice: ReadSlice, facts: ModelFacts) -> Parts:
    """One tensor's parts of a unit, gate and up apart where they can be told apart."""
    if unit.expert is None:
        return _parts_of(role, info, unit.index, read_slice, facts.scheme)
    inner = role_inside(role, info, facts)
    if not role.stacked:
        return {} if inner is None else _parts_of(inner, info, unit.index, read_slice, facts.scheme)
    if inner is None:
        shared = role.part.name in {"gate_up", "gate_up_bias"} and role.suffix.stores in _STORES
        contents = {role.part.name: read_slice(0, unit.expert)} if shared else {}
    else:
        assert inner.part.unit_axis is not None
        matrix = np.frombuffer(read_slice(0, unit.expert), np.uint8).reshape(*info.shape[1:], -1)
        contents = {role.part.name: matrix.take(unit.index, inner.part.unit_axis).tobytes()}
    return _sealed(contents, role.suffix.stores, info.dtype, small=inner is not None)


def _parts_of(role: TensorRole, info: TensorInfo, index: int, read_slice: ReadSlice, scheme: Scheme | None) -> Parts:
    """The same of a unit that is no part of another."""
    stores = role.suffix.stores
    if stores not in _STORES:
        return {}
    small = role.kind != "experts"
    if stores == "weight":
        return _sealed(_of_weight(role, info, index, read_slice), stores, info.dtype, small=small)
    found = places(role, info, index, scheme)
    contents = {place.part_name: read_slice(place.axis, place.index) for place in found}
    # Tensors that all neurons share can be large, as experts can.
    small = small and all(place.axis is not None for place in found)
    return _sealed(contents, stores, info.dtype, small=small)


def _sealed(contents: dict[PartName, bytes | memoryview], stores: Stores, dtype: str, *, small: bool) -> Parts:
    seal = _sealed_as_it_is if small else _sealed_by_hash
    return {(part_name, stores): seal(dtype, content) for part_name, content in contents.items()}


def _of_weight(
    role: TensorRole, info: TensorInfo, index: int, read_slice: ReadSlice
) -> dict[PartName, bytes | memoryview]:
    part = role.part
    if part.halves:
        width = part.width(info.shape)
        return {
            part_name: read_slice(part.unit_axis, index + number * width) for number, part_name in enumerate(HALVES)
        }
    if part.split is not None:
        whole = read_slice(part.unit_axis, index)
        middle = len(whole) // 2
        return dict(zip(HALVES, (whole[:middle], whole[middle:]), strict=True))
    return {part.name: read_slice(part.unit_axis, 0 if part.unit_axis is None else index)}


def _sealed_as_it_is(dtype: str, content: bytes | memoryview) -> Sealed:
    return Sealed(dtype, len(content), bytes(content))


def _sealed_by_hash(dtype: str, content: bytes | memoryview) -> Sealed:
    return Sealed(dtype, len(content), hashlib.sha256(content).digest())


class SealCheck:
    """Verifies every seal of some patches against tensors that come by one at a time.

    Args:
        patches: the patches.
        facts: what the model's config says.
    """

    def __init__(self, patches: PatchSet, facts: ModelFacts) -> None:
        self._facts = facts
        self._wanted: dict[Unit, list[tuple[str, str]]] = defaultdict(list)
        self._parts: dict[Unit, Parts] = defaultdict(dict)
        self._units: dict[tuple[BlockKind, int], list[Unit]] = defaultdict(list)
        for member in patches.members:
            for key, seal in member.patch.seal.items():
                unit = Unit.parse(key)
                self._wanted[unit].append((member.source, seal))
                self._units[_block_of(unit), unit.layer].append(unit)

    def observe(self, role: TensorRole, info: TensorInfo, read_slice: ReadSlice) -> None:
        """Takes what it needs of one tensor.

        Args:
            role: what the tensor is.
            info: its name, format and shape.
            read_slice: gives the bytes of a slice of it, by axis and index; of the whole tensor for axis None.
        """
        read = lru_cache(1)(read_slice)  # Neurons of one expert lie in one slice.
        for unit in self._units.get((role.block, role.layer), ()):
            if _holds(role, info, unit, self._facts):  # Else the planner says what is wrong, in better words.
                self._parts[unit] |= _parts(role, info, unit, read, self._facts)

    def finish(self) -> None:
        """Compares.

        Raises:
            MismatchError: a unit's weights are not those that were sealed, or were never seen.
        """
        for unit, seals in self._wanted.items():
            parts = self._parts[unit]
            actual = None if _lacking(parts) else unit_hash(parts)
            for source, seal in seals:
                if seal != actual:
                    raise MismatchError(source, f"seal.{unit}", f"broken: {_broken(parts, actual, seal)}")


def _block_of(unit: Unit) -> BlockKind:
    """Whose tensors hold it."""
    if unit.kind == "neurons":
        return "mlp"
    return "shared" if unit.kind == "shared" else "experts"


def _broken(parts: Parts, actual: str | None, seal: str) -> str:
    if actual:
        return f"the model's weights are not the sealed ones ({actual[:12]}… against {seal[:12]}…)"
    return f"of the unit's parts only {', '.join(name for name, _ in parts) or 'none'} can be read"


def _holds(role: TensorRole, info: TensorInfo, unit: Unit, facts: ModelFacts) -> bool:
    if unit.expert is not None:
        return _holds_inside(role, info, unit, facts)
    if role.suffix.stores != "weight":
        return True  # What doesn't hold it has no place for it.
    if len(info.shape) != role.part.rank:
        return False
    return unit.index < role.part.width(info.shape) if role.expert is None else unit.index == role.expert


def _holds_inside(role: TensorRole, info: TensorInfo, unit: Unit, facts: ModelFacts) -> bool:
    assert unit.expert is not None
    if not (role.expert == unit.expert or (role.stacked and len(info.shape) > 1 and unit.expert < info.shape[0])):
        return False
    inner = role_inside(role, info, facts)
    if inner is None or role.suffix.stores != "weight":
        return True
    return unit.index < inner.part.width(matrix_inside(info, role).shape)


@dataclass(frozen=True)
class Slice:
    """A slice of a tensor.

    Attributes:
        part_name: the part of the unit that it is.
        axis: that `index` counts along; None for the whole tensor.
    """

    part_name: PartName
    axis: int | None
    index: int


def places(role: TensorRole, info: TensorInfo, index: int, scheme: Scheme | None) -> list[Slice]:
    """The slices of unit `index` in a tensor beside or in place of a plain weight; empty if it has none."""
    if role.expert is not None:
        return [Slice(role.part.name, None, 0)] if index == role.expert else []
    if role.kind == "experts":
        return [Slice(role.part.name, role.part.unit_axis, index)] if _has(info, role.part.unit_axis, index) else []
    axis = _axis(role, info, scheme)
    per_word = _per_word(role, scheme)
    if axis is None or per_word is None:
        return [Slice(role.part.name, None, 0)]
    if not role.part.halves:
        found = [Slice(role.part.name, axis, index // per_word)]
    else:
        width = info.shape[axis] // 2
        found = [Slice(part_name, axis, index // per_word + half * width) for half, part_name in enumerate(HALVES)]
    return found if all(_has(info, place.axis, place.index) for place in found) else []


def _axis(role: TensorRole, info: TensorInfo, scheme: Scheme | None) -> int | None:
    """The axis that counts neurons, singly or by words; None where none does."""
    stores, outputs = role.suffix.stores, role.suffix.out_axis
    axis: int | None = None
    if role.part.name == "down":
        axis = 1 - outputs if stores == "codes" else None
    elif stores in {"codes", "zeros"} or (stores == "scales" and not (scheme is not None and scheme.blocks)):
        axis = outputs
    # One number, or one for each of the projections that are stored together, belongs to all neurons.
    return axis if axis is not None and len(info.shape) > axis and info.shape[axis] > len(HALVES) else None


def _per_word(role: TensorRole, scheme: Scheme | None) -> int | None:
    """The number of neurons that share one number along that axis."""
    per_word = None if scheme is None else scheme.per_word
    transposed = scheme is not None and scheme.transposed
    match role.suffix.stores:
        case "codes":
            return per_word if transposed != (role.part.name == "down") else 1
        case "zeros":
            return per_word
    return 1


def _has(info: TensorInfo, axis: int | None, index: int) -> bool:
    return axis is None or (axis < len(info.shape) and index < info.shape[axis])
