# SPDX-License-Identifier: Apache-2.0
"""Seals: hashes of the original weights of the units that a patch edits.

A neuron's hash covers its row of gate, its row of up and its column of down, as the bytes that the checkpoint stores,
each with its role, number format and length. It doesn't depend on tensor names or on how the checkpoint is sharded.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import TYPE_CHECKING

from vllm_surgery.anatomy import ROLES, GatedMlp, Role
from vllm_surgery.errors import CheckpointError, MismatchError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_surgery.anatomy import Slot, TensorInfo
    from vllm_surgery.checkpoint import ModelFolder
    from vllm_surgery.stack import PatchSet


def neuron_hash(parts: dict[Role, tuple[str, bytes]]) -> str:
    """sha256, in hex, of a neuron's original weights.

    Args:
        parts: number format and bytes for each of gate, up and down.
    """
    content = hashlib.sha256()
    for role in ROLES:
        dtype, weights = parts[role]
        content.update(f"{role} {dtype} {len(weights)}\n".encode())
        content.update(weights)
    return content.hexdigest()


def seal_of_folder(folder: ModelFolder, layer: int, index: int) -> str:
    """The seal of one neuron of a model on disk.

    Raises:
        CheckpointError: the folder can't be read, or holds no such neuron.
    """
    mlp = folder.anatomy.mlps.get(layer, GatedMlp(layer))
    if missing := mlp.missing():
        raise CheckpointError(f"{folder.path}: layer {layer} has no gated MLP (no {', '.join(missing)} projection)")
    return neuron_hash(
        {
            role: (info.dtype, folder.read_slice(info.name, 1 if role == "down" else 0, index))
            for role, info in mlp.tensors.items()
        }
    )


class SealCheck:
    """Verifies every seal of some patches against tensors that come by one at a time."""

    def __init__(self, patches: PatchSet) -> None:
        self._wanted: dict[tuple[int, int], list[tuple[str, str]]] = defaultdict(list)
        self._parts: dict[tuple[int, int], dict[Role, tuple[str, bytes]]] = defaultdict(dict)
        self._indices: dict[int, list[int]] = defaultdict(list)
        for member in patches.members:
            for key, seal in member.patch.seal.items():
                _, layer, index = key.split("/")
                self._wanted[int(layer), int(index)].append((member.source, seal))
                self._indices[int(layer)].append(int(index))

    def observe(self, slot: Slot, info: TensorInfo, read_slice: Callable[[int, int], bytes]) -> None:
        """Takes what it needs of one tensor.

        Args:
            slot: what the tensor is.
            info: its name, format and shape.
            read_slice: gives the bytes of a slice of it, by axis and index.
        """
        for index in self._indices.get(slot.layer, ()):
            if len(info.shape) != 2 or index >= info.shape[slot.part.unit_axis]:  # noqa: PLR2004 - a matrix
                continue  # The planner says what is wrong, in better words.
            content = read_slice(slot.part.unit_axis, index)
            self._parts[slot.layer, index][slot.part.role] = (info.dtype, content)

    def finish(self) -> None:
        """Compares.

        Raises:
            MismatchError: a unit's weights are not those that were sealed, or were never seen.
        """
        for (layer, index), seals in self._wanted.items():
            parts = self._parts[layer, index]
            actual = neuron_hash(parts) if len(parts) == len(ROLES) else None
            for source, seal in seals:
                if seal != actual:
                    reason = (
                        f"the model's weights are not the sealed ones ({actual[:12]}… against {seal[:12]}…)"
                        if actual
                        else f"of the unit's parts only {', '.join(parts) or 'none'} can be read"
                    )
                    raise MismatchError(source, f"seal.neurons/{layer}/{index}", f"broken: {reason}")
