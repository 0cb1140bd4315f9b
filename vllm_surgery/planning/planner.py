# SPDX-License-Identifier: Apache-2.0
"""The planner: from patches and a model's tensors to edits in checkpoint coordinates.

It looks at tensors one by one, so the same code plans a whole folder before anything is served and a stream of
weights while it is loaded. What it makes is pure data; `vllm_surgery.weights.arithmetic` carries it out.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vllm_surgery.model.anatomy import Anatomy
from vllm_surgery.model.expert_neurons import matrix_inside, role_inside, width_inside
from vllm_surgery.model.quantization import WHOLE
from vllm_surgery.model.routers import layer_of_router_bias
from vllm_surgery.patch.units import MASK, NEURON_KINDS, UnitBlock, UnitMap, block_of
from vllm_surgery.planning.carriers import carrier_of
from vllm_surgery.planning.guard import check_guards, check_width
from vllm_surgery.planning.limits import (
    check_complete,
    check_config,
    check_format,
    check_masks,
    check_present,
    check_projection,
    check_range,
    check_router_format,
    refuse_constant,
    refuse_inside,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from vllm_surgery.model.config import ModelFacts
    from vllm_surgery.model.conventions import TensorRole
    from vllm_surgery.model.tensor_info import TensorInfo
    from vllm_surgery.patch.direction import Projection
    from vllm_surgery.patch.patch_set import PatchSet
    from vllm_surgery.patch.units import Assignment, Block, Effect, Gain, Kind
    from vllm_surgery.planning.carriers import Carrier, Encoding


@dataclass(frozen=True)
class TensorEdit:
    """Gains for some slices of one tensor, or directions that they lose.

    Attributes:
        tensor: its name in the checkpoint.
        dtype: safetensors' word for its number format.
        shape: its shape in the checkpoint.
        axis: the axis that `indices` count along. None where the whole tensor is one slice, as if it had an axis of
            length one before its first.
        indices: the slices, ascending; (0,) for a whole tensor.
        gains: a factor for each: a unit's gain, or the share of it that this tensor takes; `MASK` in a router's bias,
            for the lowest number; or what a column of a down projection loses.
        numbers: what the tensor holds, where its `dtype` doesn't say.
        inside: edits of single neurons, in a tensor of all experts of a layer: by expert, ascending, each with the edit
            of its own matrix, as if that were a tensor. No expert is also one of `indices`.
    """

    tensor: str
    dtype: str
    shape: tuple[int, ...]
    axis: int | None
    indices: tuple[int, ...]
    gains: tuple[Effect, ...]
    numbers: Encoding = "floats"
    inside: tuple[tuple[int, TensorEdit], ...] = ()


@dataclass(frozen=True)
class LayerMask:
    """The experts of one layer that its router can't choose.

    Attributes:
        experts: ascending.
        count: how many experts the layer has, these among them.
        tensor: the router's bias that says so; None where it has none, so that the engine must.
    """

    layer: int
    experts: tuple[int, ...]
    count: int
    tensor: str | None


@dataclass(frozen=True)
class UnitGains:
    """The gains of one layer's units of one kind, whatever may hold them.

    Attributes:
        kind: of unit.
        layer: which.
        width: how many units the layer has.
        indices: those that patches name, ascending.
        gains: one for each.
        addends: what is added to the activation of each afterwards; 0 for nothing.
        projections: what the output of each loses.
        expert: whose neurons they are, where they are inside one.
    """

    kind: Kind
    layer: int
    width: int
    indices: tuple[int, ...]
    gains: tuple[Gain, ...]
    addends: tuple[float, ...]
    projections: tuple[Projection | None, ...] = ()
    expert: int | None = None

    @property
    def block(self) -> Block:
        """The units among which they are."""
        return block_of(self.kind, self.layer, self.expert)


@dataclass(frozen=True)
class Plan:
    """Everything that patches do to one model.

    Attributes:
        id: of the patch set.
        edits: one a touched tensor, in the order of their names.
        units: how many neurons and experts get a gain or a mask.
        masks: one a layer with masked experts, in the layers' order.
        gains: the same by unit, in the order of kinds and layers; only in a plan for slots, which has no edits.
    """

    id: str
    edits: tuple[TensorEdit, ...]
    units: int
    masks: tuple[LayerMask, ...] = ()
    gains: tuple[UnitGains, ...] = ()

    def engine_masks(self) -> dict[int, LayerMask]:
        """By layer, the masks that no tensor of the checkpoint can hold."""
        return {mask.layer: mask for mask in self.masks if mask.tensor is None}


class Planner:
    """Plans patches against a model that it sees tensor by tensor.

    Args:
        patches: what is asked for.
        facts: what the model's config says.
        for_slots: whether activations take the gains, so that it doesn't matter what the weights' number format holds.
        inside: whether what takes them instead of weights also reaches neurons inside experts, as GGUF blocks do.

    Raises:
        MismatchError: the config alone shows that the patches are not for this model.
    """

    def __init__(self, patches: PatchSet, facts: ModelFacts, *, for_slots: bool = False, inside: bool = False) -> None:
        check_guards(patches, facts)
        self._patches = patches
        self._facts = facts
        self._for_slots = for_slots
        self._anatomy = Anatomy(facts.num_hidden_layers)
        self._edits: dict[str, TensorEdit] = {}
        self._wanted: dict[Block, list[Assignment]] = defaultdict(list)
        self._inside: dict[int, dict[int, list[Assignment]]] = defaultdict(dict)
        self._by_unit: dict[Block, UnitMap] = {}
        for item in patches.assignments():
            if not for_slots:
                refuse_constant(item)
            elif not inside:
                refuse_inside(item)
            check_config(item, facts)
            self._wanted[item.block].append(item)
            if item.expert is not None:
                self._inside[item.layer][item.expert] = self._wanted[item.block]

    def observe(self, info: TensorInfo) -> tuple[TensorRole | None, TensorEdit | None]:
        """Takes in one tensor; says what it is, and the edit that it needs.

        Raises:
            MismatchError: an index out of range, a width that the guard rules out, or a number format that can't
                hold the edit exactly.
            CheckpointError: the tensor doesn't fit what was seen before.
        """
        role = self._anatomy.observe(info)
        if role is None:
            return None, self._edit_of_router(info)
        if role.kind in NEURON_KINDS and role.part.name == "down" and role.suffix.stores in WHOLE:
            for item in self._wanted.get(UnitBlock(role.kind, role.layer), ()):
                check_projection(item, info)
        carrier = carrier_of(role, info, self._facts.scheme)
        if carrier is not None and role.kind == "neurons" and carrier.width is not None:
            check_width(self._patches, role.layer, carrier.width)
        if self._for_slots:
            return role, None
        edit = None if carrier is None else _checked_edit(info, role, carrier, self._gains_for(role))
        if role.kind == "experts" and role.layer in self._inside:
            edit = self._with_neurons_inside(edit, role, info)
        if edit is not None:
            self._edits[info.name] = edit
        return role, edit

    def finish(self) -> Plan:
        """The whole plan, once every tensor was seen.

        Raises:
            MismatchError: a unit that no tensor holds.
        """
        for items in self._wanted.values():
            for item in items:
                if item.gain != MASK:
                    check_present(item, self._anatomy, self._facts)
                    self._refuse_holder(item)
            if masks := [item for item in items if item.gain == MASK]:
                check_masks(masks, self._anatomy, self._facts)
        edits = tuple(edit for _, edit in sorted(self._edits.items()))
        units = sum(map(self._units, self._wanted))
        gains = tuple(map(self._unit_gains, sorted(self._wanted, reverse=True))) if self._for_slots else ()
        return Plan(self._patches.id, edits, units, self._layer_masks(), gains)

    def _with_neurons_inside(self, edit: TensorEdit | None, role: TensorRole, info: TensorInfo) -> TensorEdit | None:
        """The edit of a tensor of routed experts, with those of single neurons in it."""
        wanted = self._inside[role.layer]
        own = [role.expert] if role.expert in wanted else []
        # Those that are not there are refused later.
        held = sorted(expert for expert in wanted if expert < info.shape[0]) if role.stacked else own
        inner = role_inside(role, info, self._facts) if held else None
        carrier = None if inner is None else carrier_of(inner, matrix_inside(info, role), self._facts.scheme)
        if inner is None or carrier is None:
            return edit
        edits = {
            expert: found
            for expert in held
            if (found := _checked_edit(matrix_inside(info, role), inner, carrier, wanted[expert])) is not None
        }
        if not role.stacked:
            return edits.get(held[0], edit)
        whole = edit or TensorEdit(info.name, info.dtype, info.shape, 0, (), ())
        return replace(whole, inside=tuple(edits.items())) if edits else edit

    def _gains_for(self, role: TensorRole) -> list[Assignment]:
        """The assignments of gains to the units that a tensor holds a part of."""
        place = UnitBlock(role.kind, role.layer)
        if place not in self._wanted:
            return []
        if role.expert is None:
            return [item for item in self._wanted[place] if item.gain != MASK]
        if place not in self._by_unit:
            self._by_unit[place] = UnitMap(self._wanted[place])
        found = self._by_unit[place].of(role.expert)
        return [] if found is None or found.gain == MASK else [found]

    def _refuse_holder(self, item: Assignment) -> None:
        """Refuses gains that their tensors can't hold whole: weights seen in part, or a layer that isn't so wide."""
        if self._for_slots:
            check_range(item, self._width(item.block))
        elif item.projection is None:
            check_complete(item, self._anatomy, self._facts)

    def _edit_of_router(self, info: TensorInfo) -> TensorEdit | None:
        """The edit of a router's bias, as `observe` gives it; None for every other tensor."""
        layer = layer_of_router_bias(info.name)
        masks = [] if layer is None or self._for_slots else self._masks_of(layer)
        for item in masks:
            check_router_format(item, info)
            check_range(item, info.shape[0])
        if not masks:
            return None
        indices = tuple(sorted(index for item in masks for index in item.resolve(info.shape[0])))
        edit = TensorEdit(info.name, info.dtype, info.shape, 0, indices, (MASK,) * len(indices))
        self._edits[info.name] = edit
        return edit

    def _masks_of(self, layer: int) -> list[Assignment]:
        return [item for item in self._wanted.get(UnitBlock("experts", layer), []) if item.gain == MASK]

    def _layer_masks(self) -> tuple[LayerMask, ...]:
        layers = sorted({block.layer for block in self._wanted if block.kind == "experts"})
        layers = [layer for layer in layers if self._masks_of(layer)]
        return tuple(self._layer_mask(layer) for layer in layers)

    def _layer_mask(self, layer: int) -> LayerMask:
        width, bias = self._width(UnitBlock("experts", layer)), self._anatomy.routers[layer].bias
        experts = sorted(index for item in self._masks_of(layer) for index in item.resolve(width))
        return LayerMask(layer, tuple(experts), width, None if bias is None else bias.name)

    def _unit_gains(self, place: Block) -> UnitGains:
        width = self._width(place)
        items = {index: item for item in self._wanted[place] for index in item.resolve(width)}
        ordered = [items[index] for index in sorted(items)]
        gains, addends = tuple(item.gain for item in ordered), tuple(item.addend for item in ordered)
        projections = tuple(item.projection for item in ordered)
        indices = tuple(sorted(items))
        return UnitGains(place.kind, place.layer, width, indices, gains, addends, projections, place.expert)

    def _units(self, place: Block) -> int:
        return sum(item.count(self._width(place)) for item in self._wanted[place])

    def _width(self, place: Block) -> int:
        """The number of units of a layer, or of neurons of an expert, which earlier checks have made sure of."""
        if place.expert is not None:
            return width_inside(self._anatomy.experts[place.layer], place.expert, self._facts)
        if place.kind == "experts":
            return self._anatomy.experts_in(place.layer) or 0
        return self._anatomy.gated_mlps(place.kind)[place.layer].width


def plan(patches: PatchSet, facts: ModelFacts, tensors: Iterable[TensorInfo]) -> Plan:
    """Plans `patches` for a checkpoint with these tensors.

    Raises:
        MismatchError: the patches are not for this model; one line with file, place and reason.
        CheckpointError: the tensors are not those of a model that is understood.
    """
    planner = Planner(patches, facts)
    for info in tensors:
        planner.observe(info)
    return planner.finish()


def _checked_edit(
    info: TensorInfo, role: TensorRole, carrier: Carrier, wanted: Sequence[Assignment]
) -> TensorEdit | None:
    for item in wanted:
        check_format(item, info, carrier)
    return _edit_of(info, role, carrier, wanted)


def _edit_of(info: TensorInfo, role: TensorRole, carrier: Carrier, wanted: Iterable[Assignment]) -> TensorEdit | None:
    """Each unit's gain, or the tensor's share of it, goes on its slice; None where no share changes anything."""
    gains: dict[int, float | Projection] = {}
    for item in wanted:
        assert item.gain != MASK  # Masks go on no part of an expert.
        factor = carrier.factor(item.gain) if item.projection is None else item.projection
        if factor == 1 or (item.projection is not None and role.part.name != "down"):
            continue
        width = carrier.width or 0
        if role.expert is None:
            check_range(item, width)
        # A tensor that is all of one expert has one slice, itself.
        gains.update(dict.fromkeys(item.resolve(width) if role.expert is None else (0,), factor))
    return edit_of_factors(info, carrier, gains) if gains else None


def edit_of_factors(info: TensorInfo, carrier: Carrier, factors: Mapping[int, float | Projection]) -> TensorEdit:
    """The edit of a tensor by which units, counted as it counts them, get these shares of their gains."""
    units = sorted(factors)
    indices, gains = tuple(carrier.first + unit for unit in units), tuple(factors[unit] for unit in units)
    return TensorEdit(info.name, info.dtype, info.shape, carrier.axis, indices, gains, carrier.encoding)
