# SPDX-License-Identifier: Apache-2.0
"""The content of a slot: gains and constants by unit, as plain data that crosses processes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from vllm_surgery.patch.units import MASK, NEURON_KINDS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm_surgery.patch.patch_set import PatchSet
    from vllm_surgery.patch.units import Kind
    from vllm_surgery.planning.planner import UnitGains

NO_ADDEND = -0.0
"""The one number that may be added to any, negative zero too, and leaves each bit of it as it is."""


@dataclass(frozen=True)
class LayerGains:
    """Gains and addends of some units of one layer.

    Attributes:
        count: how many units the layer has.
        indices: of the units, over all ranks.
        gains: a factor for each.
        addends: what is added to each afterwards; for neurons alone.
        directions: what their outputs lose.
    """

    count: int
    indices: tuple[int, ...]
    gains: tuple[float, ...]
    addends: tuple[float, ...] = ()
    directions: tuple[LostDirection, ...] = ()


@dataclass(frozen=True)
class LostDirection:
    """A direction that the outputs of some neurons lose.

    Attributes:
        indices: of the neurons, over all ranks.
        responses: how much each loses of it, for an activation of 1.
        numbers: the direction: float32, little-endian.
    """

    indices: tuple[int, ...]
    responses: tuple[float, ...]
    numbers: bytes


@dataclass(frozen=True)
class SlotContent:
    """Gains, addends and masks that one patch set gives the requests that choose it.

    Attributes:
        id: of the patch set.
        digest: of what it does.
        units: how many neurons and experts it names.
        neurons, shared, experts: by layer.
        masks: by layer the count of experts and those that its router can't choose.
    """

    id: str
    digest: str
    units: int
    neurons: Mapping[int, LayerGains] = field(default_factory=dict)
    shared: Mapping[int, LayerGains] = field(default_factory=dict)
    experts: Mapping[int, LayerGains] = field(default_factory=dict)
    masks: Mapping[int, tuple[int, tuple[int, ...]]] = field(default_factory=dict)

    @property
    def layers(self) -> dict[str, set[int]]:
        """The layers in which something happens, by kind; together the ranks must hold them all."""
        return {"neurons": {*self.neurons}, "shared": {*self.shared}, "experts": {*self.experts, *self.masks}}

    def to_data(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "id": self.id,
            "digest": self.digest,
            "units": self.units,
            "neurons": [[layer, *_rows(gains)] for layer, gains in self.neurons.items()],
            "shared": [[layer, *_rows(gains)] for layer, gains in self.shared.items()],
            "experts": [[layer, *_rows(gains)] for layer, gains in self.experts.items()],
            "masks": [[layer, count, list(masked)] for layer, (count, masked) in self.masks.items()],
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> SlotContent:
        """The content whose `to_data` this is."""
        return cls(
            data["id"],
            data["digest"],
            data["units"],
            {layer: _gains(*rows) for layer, *rows in data["neurons"]},
            {layer: _gains(*rows) for layer, *rows in data["shared"]},
            {layer: _gains(*rows) for layer, *rows in data["experts"]},
            {layer: (count, tuple(masked)) for layer, count, masked in data["masks"]},
        )


def content_of(
    patches: PatchSet,
    planned: tuple[UnitGains, ...],
    units: int,
    lost: Mapping[tuple[Kind, int], tuple[LostDirection, ...]] = MappingProxyType({}),
) -> SlotContent:
    """Makes the content of a slot from a plan.

    Args:
        patches: what was planned.
        planned: gains by layer, from a plan for slots.
        units: how many there are.
        lost: by kind and layer, the directions that outputs lose.
    """
    experts, masks = {}, {}
    neurons: dict[Kind, dict[int, LayerGains]] = {kind: {} for kind in NEURON_KINDS}
    for layer in planned:
        if layer.kind in neurons:
            neurons[layer.kind][layer.layer] = _neurons(layer, lost.get((layer.kind, layer.layer), ()))
            continue
        masked = tuple(index for index, gain in zip(layer.indices, layer.gains, strict=True) if gain == MASK)
        if masked:
            masks[layer.layer] = (layer.width, masked)
        if len(masked) < len(layer.indices):
            experts[layer.layer] = _experts(layer)
    return SlotContent(patches.id, digest_of(patches), units, neurons["neurons"], neurons["shared"], experts, masks)


def digest_of(patches: PatchSet) -> str:
    """One patch's own digest; of several, one that doesn't depend on their order."""
    digests = sorted(member.patch.digest for member in patches.members)
    return digests[0] if len(digests) == 1 else hashlib.sha256("+".join(digests).encode("ascii")).hexdigest()


def name_of(patches: PatchSet) -> str:
    """The name by which requests choose a patch set."""
    return "+".join(sorted(member.patch.name for member in patches.members))


def _neurons(layer: UnitGains, lost: tuple[LostDirection, ...]) -> LayerGains:
    addends = tuple(addend or NO_ADDEND for addend in layer.addends)
    return LayerGains(layer.width, layer.indices, tuple(map(float, layer.gains)), addends, lost)  # None is masked.


def _experts(layer: UnitGains) -> LayerGains:
    pairs = [(index, gain) for index, gain in zip(layer.indices, layer.gains, strict=True) if gain != MASK]
    return LayerGains(layer.width, tuple(index for index, _ in pairs), tuple(float(gain) for _, gain in pairs))


def _rows(gains: LayerGains) -> tuple[int, list[int], list[float], list[float], list[list[Any]]]:
    lost = [[list(each.indices), list(each.responses), each.numbers.hex()] for each in gains.directions]
    return gains.count, list(gains.indices), list(gains.gains), list(gains.addends), lost


def _gains(
    count: int, indices: list[int], gains: list[float], addends: list[float], lost: list[list[Any]]
) -> LayerGains:
    directions = tuple(LostDirection(tuple(one), tuple(each), bytes.fromhex(numbers)) for one, each, numbers in lost)
    return LayerGains(count, tuple(indices), tuple(gains), tuple(addends), directions)
