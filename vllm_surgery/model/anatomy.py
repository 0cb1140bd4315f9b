# SPDX-License-Identifier: Apache-2.0
"""Model anatomy in checkpoint coordinates: the blocks whose units a patch can name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, get_args

from vllm_surgery.errors import CheckpointError
from vllm_surgery.model.conventions import classify_tensor, lacking
from vllm_surgery.model.quantization import WHOLE, Stores
from vllm_surgery.model.routers import Router, layer_of_router, observe_router
from vllm_surgery.model.tensor_info import UNPACKED_DTYPES, TensorInfo
from vllm_surgery.patch.units import NEURON_KINDS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vllm_surgery.model.conventions import Convention, PartName, TensorRole
    from vllm_surgery.patch.units import Kind, Unit


@dataclass
class GatedMlp:
    """The tensors of one layer's gated MLP, ``down · (act(gate) * up)``, as far as they have been seen.

    It is the layer's own, or its shared expert.
    """

    layer: int
    tensors: dict[PartName, TensorInfo] = field(default_factory=dict)
    quant_params: dict[tuple[PartName, Stores], tuple[TensorRole, TensorInfo]] = field(default_factory=dict)

    def missing(self) -> list[PartName]:
        """The matrices that no tensor holds."""
        return lacking(self.tensors)

    @property
    def width(self) -> int:
        """Neurons: the size of the intermediate dimension. Needs the down projection, and for packed codes up's scales.

        0 where it can't be told.
        """
        down = self.tensors.get("down")
        if down is not None and down.dtype in UNPACKED_DTYPES:
            return down.shape[1]
        return self._outputs("up") or self._outputs("gate_up")

    def _outputs(self, part_name: PartName) -> int:
        role, scales = self.quant_params.get((part_name, "scales"), (None, None))
        if role is None or scales is None or role.suffix.out_axis >= len(scales.shape):
            return 0
        outputs = scales.shape[role.suffix.out_axis]
        return outputs // 2 if role.part.halves else outputs


@dataclass
class RoutedExperts:
    """The tensors of one layer's routed experts, as far as they have been seen.

    Attributes:
        convention: how they are named, which says whether each expert has tensors of its own.
        tensors: by role, and by expert where it has its own, else under None.
        beside: the same for what stands beside the codes of quantised weights, by what it is.
    """

    layer: int
    convention: Convention
    tensors: dict[tuple[PartName, int | None], TensorInfo] = field(default_factory=dict)
    quant_params: dict[tuple[PartName, int | None, Stores], TensorInfo] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Experts: up to the last one that was seen where each has its own tensors, so all of a whole checkpoint's."""
        own = [expert + 1 for _, expert in self.tensors if expert is not None]
        shared = [info.shape[0] for info in self.tensors.values() if info.dtype in UNPACKED_DTYPES]
        return max(own or shared, default=0)

    def tensors_of(self, index: int) -> list[TensorInfo]:
        """The tensors that hold something of one expert."""
        keys = [(part.name, expert) for part in self.convention.parts.values() for expert in (None, index)]
        whole = [self.tensors[key] for key in keys if key in self.tensors]
        beside = [(*key, stores) for key in keys for stores in get_args(Stores)]
        return whole + [self.quant_params[key] for key in beside if key in self.quant_params]

    def roles_of(self, index: int) -> list[tuple[TensorRole, TensorInfo]]:
        """The same, each with its role."""
        found = ((classify_tensor(info.name), info) for info in self.tensors_of(index))
        return [(role, info) for role, info in found if role is not None]

    def missing(self, index: int) -> list[PartName]:
        """The parts that a gain of expert `index` needs and no tensor holds."""
        needed = [part.name for part in self.convention.carriers if not part.optional]
        return [
            part_name
            for part_name in needed
            if (part_name, None) not in self.tensors and (part_name, index) not in self.tensors
        ]


class Anatomy:
    """The blocks of a model, found by looking at its tensors one by one, in any order."""

    def __init__(self, num_hidden_layers: int | None = None) -> None:
        self.num_hidden_layers = num_hidden_layers
        self.mlps: dict[int, GatedMlp] = {}
        self.shared: dict[int, GatedMlp] = {}
        self.experts: dict[int, RoutedExperts] = {}
        self.routers: dict[int, Router] = {}

    @classmethod
    def of(cls, tensors: Iterable[TensorInfo], num_hidden_layers: int | None = None) -> Anatomy:
        """The anatomy of a whole checkpoint.

        Raises:
            CheckpointError: shapes that no such block can have, or two tensors for one part.
        """
        anatomy = cls(num_hidden_layers)
        for info in tensors:
            anatomy.observe(info)
        return anatomy

    def observe(self, info: TensorInfo) -> TensorRole | None:
        """Takes one tensor in, and says which part of which block it is; None where it is no part of a unit.

        Raises:
            CheckpointError: its shape can't be, or its part is taken by a tensor of another name.
        """
        role = classify_tensor(info.name)
        if role is None:
            layer = layer_of_router(info.name)
            if layer is not None and not self._beyond_last_layer(layer):
                observe_router(self.routers, layer, info)
            return None
        if self._beyond_last_layer(role.layer):
            return None
        if role.block == "experts":
            self._observe_experts(role, info)
        else:
            self._observe_mlp(role, info)
        return role

    def gated_mlps(self, kind: Kind) -> dict[int, GatedMlp]:
        """The gated MLPs, by layer, whose neurons are units of this kind; none of other kinds."""
        return {"neurons": self.mlps, "shared": self.shared}.get(kind, {})

    def widths(self, kind: Kind = "neurons") -> dict[int, int]:
        """Neurons in each layer whose down projection was seen and whose width can be told."""
        found = self.gated_mlps(kind).items()
        return {layer: mlp.width for layer, mlp in found if "down" in mlp.tensors and mlp.width}

    def counts(self, kind: Kind) -> dict[int, int]:
        """Units of a kind in each layer that has them."""
        return self.expert_counts() if kind == "experts" else self.widths(kind)

    def expert_counts(self) -> dict[int, int]:
        """Routed experts in each layer that has them."""
        return {layer: block.count for layer, block in self.experts.items()}

    def experts_in(self, layer: int) -> int | None:
        """Routed experts in a layer, as its router or they themselves tell; None where no tensor of either was seen."""
        router, block = self.routers.get(layer), self.experts.get(layer)
        return (router.count if router else None) or (block.count if block else None)

    def tensors_of(self, unit: Unit) -> list[TensorInfo]:
        """The tensors that hold something of one unit."""
        if unit.kind in NEURON_KINDS:
            mlp = self.gated_mlps(unit.kind).get(unit.layer, GatedMlp(unit.layer))
            return [*mlp.tensors.values(), *(info for _, info in mlp.quant_params.values())]
        block = self.experts.get(unit.layer)
        return block.tensors_of(unit.index if unit.expert is None else unit.expert) if block else []

    def _observe_mlp(self, role: TensorRole, info: TensorInfo) -> None:
        mlp = self.gated_mlps(role.kind).setdefault(role.layer, GatedMlp(role.layer))
        if role.suffix.stores not in WHOLE:
            mlp.quant_params[role.part.name, role.suffix.stores] = role, info
            return
        known = mlp.tensors.setdefault(role.part.name, info)
        if known != info:
            raise CheckpointError(f"{known.name} and {info.name} are both the {role.part.name} part of one MLP")
        if info.dtype in UNPACKED_DTYPES:
            _check_mlp(mlp)

    def _observe_experts(self, role: TensorRole, info: TensorInfo) -> None:
        block = self.experts.setdefault(role.layer, RoutedExperts(role.layer, role.convention))
        if role.suffix.stores not in WHOLE:
            block.quant_params[role.part.name, role.expert, role.suffix.stores] = info
            return
        known = block.tensors.setdefault((role.part.name, role.expert), info)
        if known != info:
            raise CheckpointError(f"{known.name} and {info.name} are both the {role.part.name} part of one expert")
        if block.convention is not role.convention:
            other = next(iter(block.tensors.values()))
            raise CheckpointError(f"{other.name} and {info.name} name the experts of one layer in two ways")
        if info.dtype in UNPACKED_DTYPES:
            _check_experts(block, role, info)

    def _beyond_last_layer(self, layer: int) -> bool:
        # Multi-token-prediction heads are stored as layers after the last; they are no part of the model that answers.
        return self.num_hidden_layers is not None and layer >= self.num_hidden_layers


def _check_mlp(mlp: GatedMlp) -> None:
    plain = [info for info in mlp.tensors.values() if info.dtype in UNPACKED_DTYPES]
    shapes = {part_name: info.shape for part_name, info in mlp.tensors.items() if info.dtype in UNPACKED_DTYPES}
    if any(len(info.shape) != 2 for info in plain) or len(_upright(shapes)) > 1:  # noqa: PLR2004 - matrices
        raise _odd_shapes("a gated MLP", mlp.tensors.values())


def _check_experts(block: RoutedExperts, role: TensorRole, info: TensorInfo) -> None:
    # Against tensors of the same expert alone: all of them each time would take the square of their number.
    keys = [(part.name, role.expert) for part in block.convention.parts.values()]
    known = {key[0]: block.tensors[key] for key in keys if key in block.tensors}
    shapes = {part_name: tensor.shape for part_name, tensor in known.items() if tensor.dtype in UNPACKED_DTYPES}
    told = {shape[:1] for shape in shapes.values()} if role.expert is None else _upright(shapes)
    if len(info.shape) != role.part.rank or len(told) > 1:
        raise _odd_shapes("routed experts", known.values())


def _upright(shapes: dict[PartName, tuple[int, ...]]) -> set[tuple[int, ...]]:
    """The shapes of gate and up, ``[width, hidden]``, as each tensor tells them. More than one can't be."""
    told = {
        shape[::-1] if part_name == "down" else shape for part_name, shape in shapes.items() if part_name != "gate_up"
    }
    doubled = [shape for part_name, shape in shapes.items() if part_name == "gate_up"]
    # An odd number of rows is told as it is, which no other tensor does.
    return told | {(shape[0] // 2, *shape[1:]) if shape and shape[0] % 2 == 0 else shape for shape in doubled}


def _odd_shapes(block: str, tensors: Iterable[TensorInfo]) -> CheckpointError:
    described = ", ".join(f"{info.name} {list(info.shape)}" for info in tensors)
    return CheckpointError(f"not the shapes of {block}: {described}")
