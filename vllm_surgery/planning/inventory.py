# SPDX-License-Identifier: Apache-2.0
"""Inventory of a model's folder: which units a patch can edit, where their gains go, and which ops are exact there."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vllm_surgery.errors import CheckpointError, MismatchError, one_line
from vllm_surgery.model.conventions import classify_tensor
from vllm_surgery.model.expert_neurons import gated_mlp_of, matrix_inside, role_inside, why_at_odds
from vllm_surgery.model.tensor_info import FLOAT_DTYPES
from vllm_surgery.patch.describe import count
from vllm_surgery.patch.units import (
    INSIDE,
    KINDS,
    MASK,
    NEURON_KINDS,
    Assignment,
    IndexRange,
    merge_ranges,
    units_in_words,
)
from vllm_surgery.planning.carriers import carrier_of
from vllm_surgery.planning.limits import check_complete

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from vllm_surgery.model.anatomy import Anatomy, RoutedExperts
    from vllm_surgery.model.checkpoint import ModelFolder
    from vllm_surgery.model.config import ModelFacts
    from vllm_surgery.model.quantization import Scheme
    from vllm_surgery.model.routers import Router
    from vllm_surgery.model.tensor_info import TensorInfo
    from vllm_surgery.patch.units import Kind
    from vllm_surgery.planning.carriers import Carrier

    Carried = tuple[TensorInfo, Carrier]


@dataclass(frozen=True)
class UnitsFound:
    """Units of one kind, in layers that store them alike.

    Attributes:
        kind: neurons, neurons of shared experts, experts, or neurons inside experts.
        layers: where they are.
        units: of each layer, or of each expert; 0 where a packed format hides how many.
        tensors: on which their gains go, with ``*`` for the number of a layer or an expert.
        dtypes: how those are stored.
        ops: what these formats hold exactly.
        masked_by: the routers' bias that a mask goes on, with ``*`` for the layer; None where there is none.
    """

    kind: Kind
    layers: tuple[int, ...]
    units: int
    tensors: tuple[str, ...]
    dtypes: tuple[str, ...]
    ops: tuple[str, ...]
    masked_by: str | None = None

    def __str__(self) -> str:
        layers = f"layer{'s' if len(self.layers) > 1 else ''} {_ranges(self.layers)}"
        word = units_in_words(self.kind)
        if self.kind == INSIDE:
            each = f"{self.units} neurons inside each expert" if self.units else word
        else:
            each = f"{self.units} {word}{' each' if len(self.layers) > 1 else ''}" if self.units else word
        ops = [f"mask ({self.masked_by or 'while serving'})" if op == MASK else op for op in self.ops]
        exact = f"exact: {', '.join(ops)}" if ops else "no op is exact"
        gains = (
            f"gains go on {' and '.join(self.tensors)} ({', '.join(self.dtypes)})"
            if self.tensors
            else "gains can go on no tensor"
        )
        return f"{layers}: {each}; {gains}; {exact}"


@dataclass(frozen=True)
class Inventory:
    """The editable contents of a model's folder.

    Attributes:
        tensors: how many.
        known: how many of them belong to units.
        found: the units, in groups that are stored alike.
        without: layers that have neither neurons nor experts in a naming that is known.
    """

    architectures: tuple[str, ...]
    num_hidden_layers: int | None
    hidden_size: int | None
    quantization: str | None
    tensors: int
    known: int
    found: tuple[UnitsFound, ...]
    without: tuple[int, ...]

    @property
    def editable(self) -> bool:
        """True if a patch can edit anything."""
        return any(group.ops for group in self.found)

    def lines(self) -> Iterator[str]:
        """The inventory in words."""
        yield ", ".join(
            filter(
                None,
                [
                    " or ".join(self.architectures) or "an unnamed architecture",
                    count(self.num_hidden_layers, "layer") if self.num_hidden_layers is not None else "",
                    f"hidden size {self.hidden_size}" if self.hidden_size is not None else "",
                    f"quantised ({self.quantization})" if self.quantization else "",
                    f"{count(self.tensors, 'tensor')}, {self.known} of them parts of units",
                ],
            )
        )
        yield from map(str, self.found)
        if self.without:
            plural = "s" if len(self.without) > 1 else ""
            yield f"layer{plural} {_ranges(self.without)}: no MLP and no experts in a naming that is known"
        if not self.editable:
            yield "nothing in this model can be edited"


def take_inventory(folder: ModelFolder) -> Inventory:
    """Looks through a model's folder; only headers are read.

    Raises:
        CheckpointError: it can't be read, or is not a model that is understood.
    """
    facts, anatomy = folder.facts, folder.anatomy
    groups: dict[UnitsFound, list[int]] = defaultdict(list)
    for layer, group in _groups(anatomy, facts):
        groups[group].append(layer)
    found = [replace(group, layers=tuple(sorted(layers))) for group, layers in groups.items()]
    seen = {layer for group in found for layer in group.layers}
    return Inventory(
        architectures=facts.architectures,
        num_hidden_layers=facts.num_hidden_layers,
        hidden_size=facts.hidden_size,
        quantization=facts.quantization,
        tensors=len(folder.tensors),
        known=sum(
            len(mlp.tensors) + len(mlp.quant_params)
            for kind in NEURON_KINDS
            for mlp in anatomy.gated_mlps(kind).values()
        )
        + sum(len(block.tensors) + len(block.quant_params) for block in anatomy.experts.values()),
        found=tuple(sorted(found, key=lambda group: (KINDS.index(group.kind), group.layers))),
        without=tuple(layer for layer in range(facts.num_hidden_layers or 0) if layer not in seen),
    )


def _groups(anatomy: Anatomy, facts: ModelFacts) -> Iterator[tuple[int, UnitsFound]]:
    """Each layer with its units, which name no layer, so that those of layers that are stored alike are equal."""
    for kind in NEURON_KINDS:
        yield from _groups_of_mlps(kind, anatomy, facts)
    for layer in sorted({*anatomy.experts, *anatomy.routers}):
        block, router = anatomy.experts.get(layer), anatomy.routers.get(layer)
        carriers = carried([*block.tensors.values(), *block.quant_params.values()], facts.scheme) if block else []
        ops = exact_ops(_first("experts", layer), carriers, anatomy, facts) if carriers else ()
        group = _group("experts", anatomy.experts_in(layer) or 0, [info for info, _ in carriers], ops)
        if router is not None and _can_mask(router):
            bias = None if router.bias is None else _with_stars(router.bias.name)
            group = replace(group, ops=(*group.ops, MASK), masked_by=bias)
        if carriers or group.ops:
            yield layer, group
        if block is not None and (inside := _inside(block, anatomy, facts)) is not None:
            yield layer, inside


def _inside(block: RoutedExperts, anatomy: Anatomy, facts: ModelFacts) -> UnitsFound | None:
    """The neurons inside a layer's experts, as those of its first expert are stored; None where they can't be told."""
    try:
        mlp = gated_mlp_of(block, 0, facts)
        roles = [(role_inside(role, info, facts), role, info) for role, info in block.roles_of(0)]
    except CheckpointError:
        return None
    if mlp.missing() or why_at_odds(block, facts):
        return None
    carriers = [
        (info, carrier)
        for inner, role, info in roles
        if inner is not None
        and role.suffix.stores != "bias"
        and (carrier := carrier_of(inner, matrix_inside(info, role), facts.scheme)) is not None
    ]
    ops = exact_ops(_first(INSIDE, block.layer, expert=0), carriers, anatomy, facts)
    return _group(INSIDE, mlp.width, _able(carriers), ops)


def _able(carriers: Sequence[Carried]) -> list[TensorInfo]:
    """The tensors that can hold some share of gains; all where none can."""
    return [info for info, carrier in carriers if carrier.unsupported is None] or [info for info, _ in carriers]


def _groups_of_mlps(kind: Kind, anatomy: Anatomy, facts: ModelFacts) -> Iterator[tuple[int, UnitsFound]]:
    widths = anatomy.widths(kind)
    for layer, mlp in anatomy.gated_mlps(kind).items():
        if not mlp.missing():
            infos = [*mlp.tensors.values(), *(info for _, info in mlp.quant_params.values())]
            carriers = carried(infos, facts.scheme)
            ops = exact_ops(_first(kind, layer), carriers, anatomy, facts)
            yield layer, _group(kind, widths.get(layer, 0), _able(carriers), ops)


def _can_mask(router: Router) -> bool:
    return router.other_bias is None and (router.bias is None or router.bias.dtype in FLOAT_DTYPES)


def _group(kind: Kind, units: int, carriers: Iterable[TensorInfo], ops: tuple[str, ...]) -> UnitsFound:
    names = tuple(sorted({_with_stars(info.name) for info in carriers}))
    dtypes = tuple(sorted({info.dtype for info in carriers}))
    return UnitsFound(kind, (), units, names, dtypes, ops)


def _with_stars(name: str) -> str:
    return re.sub(r"\.[0-9]+\.", ".*.", name)


def _ranges(layers: Iterable[int]) -> str:
    return ", ".join(map(str, merge_ranges(IndexRange(layer, layer) for layer in layers)))


# An op, and a gain that stands for all of its gains. A power of two is worth naming only where others aren't held.
_OPS = {"scale": 0.7, "scale by powers of two": 0.5, "zero": 0.0, "negate": -1.0}
_POWERS = "scale by powers of two"


def carried(infos: Iterable[TensorInfo], scheme: Scheme | None) -> list[Carried]:
    """The tensors of a block that take a component of gains, without biases, which only go along."""
    found = []
    for info in infos:
        role = classify_tensor(info.name)
        carrier = None if role is None or role.suffix.stores == "bias" else carrier_of(role, info, scheme)
        if carrier is not None:
            found.append((info, carrier))
    return found


def _first(kind: Kind, layer: int, expert: int | None = None) -> Assignment:
    """An assignment to the first unit of a kind in a layer."""
    return Assignment(kind, layer, (IndexRange(0, 0),), 0.0, "", "", expert=expert)


def exact_ops(unit: Assignment, carriers: Sequence[Carried], anatomy: Anatomy, facts: ModelFacts) -> tuple[str, ...]:
    """The ops that are exact on the units of one layer, of which `unit` names one."""
    factors = [carrier for _, carrier in carriers]
    held = [
        op
        for op, gain in _OPS.items()
        if not any(carrier.why_unsupported(carrier.factor(gain)) for carrier in factors)
        and any(carrier.factor(gain) != 1 for carrier in factors)
        and _complete(replace(unit, gain=gain), anatomy, facts)
    ]
    return tuple(op for op in held if op != _POWERS or "scale" not in held)


def _complete(item: Assignment, anatomy: Anatomy, facts: ModelFacts) -> bool:
    try:
        check_complete(item, anatomy, facts)
    except MismatchError:
        return False
    return True


def describe_model(model: ModelFolder) -> str:
    """One line on the model's units."""
    facts, anatomy = model.facts, model.anatomy
    widths, shared, experts = anatomy.widths(), anatomy.widths("shared"), anatomy.expert_counts()
    parts = [
        " or ".join(facts.architectures) or "an unnamed architecture",
        f"{facts.num_hidden_layers} layers" if facts.num_hidden_layers is not None else "",
        f"{_sizes(widths)} neurons in each of {count(len(widths), 'dense MLP')}" if widths else "no dense MLPs",
        count(sum(widths.values()), "neuron") + " in all" if widths else "",
        f"{_sizes(shared)} neurons in each of {count(len(shared), 'shared expert')}" if shared else "",
        f"{_sizes(experts)} routed experts in each of {count(len(experts), 'layer')}" if experts else "",
        f"quantised ({facts.quantization})" if facts.quantization else "",
    ]
    return one_line(f"{model.path}: {', '.join(filter(None, parts))}")


def _sizes(by_layer: Mapping[int, int]) -> str:
    return " or ".join(map(str, sorted(set(by_layer.values()))))
