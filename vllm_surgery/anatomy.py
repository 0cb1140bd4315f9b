# SPDX-License-Identifier: Apache-2.0
"""What a model is made of, in checkpoint coordinates: which tensor holds which part of which unit.

One table says how model families name their tensors. A new family is a new row; nothing else here knows a family.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from vllm_surgery.errors import CheckpointError
from vllm_surgery.units import LAYER_PATTERN

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Role: TypeAlias = Literal["gate", "up", "down"]
# The number formats in which a weight is a number by itself. Others are packed, or have scales beside them.
PLAIN_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})

ROLES: tuple[Role, ...] = ("gate", "up", "down")


@dataclass(frozen=True)
class TensorInfo:
    """A tensor in checkpoint coordinates: its name, safetensors' word for its number format, and its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """What a tensor is to the units of its layer: its role, and the axis that counts the units."""

    role: Role
    unit_axis: int


@dataclass(frozen=True)
class Convention:
    """A row of the table: how some families name the parts of a block.

    Attributes:
        block: whose units the tensors belong to; ``mlp`` is the dense gated MLP of a layer.
        pattern: matches a whole tensor name, with groups ``layer`` and ``part``.
        parts: the words that ``part`` may be.
    """

    name: str
    block: Literal["mlp"]
    pattern: re.Pattern[str]
    parts: Mapping[str, Part]


# Where the text model's layers lie: alone, inside a multimodal model, and in that model's older spelling.
# Vision and audio towers have other roots, so their MLPs are never taken for the language model's.
_ROOTS = r"(?:model|model\.language_model|language_model\.model)"

CONVENTIONS: tuple[Convention, ...] = (
    Convention(
        name="gated MLP (Llama, Mistral, Qwen, Gemma)",
        block="mlp",
        pattern=re.compile(rf"{_ROOTS}\.layers\.(?P<layer>{LAYER_PATTERN})\.mlp\.(?P<part>[a-z_]+)\.weight"),
        parts={"gate_proj": Part("gate", 0), "up_proj": Part("up", 0), "down_proj": Part("down", 1)},
    ),
)


@dataclass(frozen=True)
class Slot:
    """The place of one tensor in the anatomy."""

    block: Literal["mlp"]
    layer: int
    part: Part


def locate(name: str) -> Slot | None:
    """The slot of the tensor called `name`, or None where no convention knows it."""
    for convention in CONVENTIONS:
        found = convention.pattern.fullmatch(name)
        if found and found["part"] in convention.parts:
            return Slot(convention.block, int(found["layer"]), convention.parts[found["part"]])
    return None


@dataclass
class GatedMlp:
    """The tensors of one layer's gated MLP, ``down · (act(gate) * up)``, as far as they have been seen."""

    layer: int
    tensors: dict[Role, TensorInfo] = field(default_factory=dict)

    def missing(self) -> list[Role]:
        """The roles that no tensor has taken."""
        return [role for role in ROLES if role not in self.tensors]

    @property
    def width(self) -> int:
        """Neurons: the size of the intermediate dimension. Needs the down projection."""
        return self.tensors["down"].shape[1]


class Anatomy:
    """The blocks of a model, found by looking at its tensors one by one, in any order."""

    def __init__(self, num_hidden_layers: int | None = None) -> None:
        self.num_hidden_layers = num_hidden_layers
        self.mlps: dict[int, GatedMlp] = {}

    @classmethod
    def of(cls, tensors: Iterable[TensorInfo], num_hidden_layers: int | None = None) -> Anatomy:
        """The anatomy of a whole checkpoint.

        Raises:
            CheckpointError: shapes that no gated MLP can have, or two tensors for one part.
        """
        anatomy = cls(num_hidden_layers)
        for info in tensors:
            anatomy.observe(info)
        return anatomy

    def observe(self, info: TensorInfo) -> Slot | None:
        """Takes one tensor in, and says which part of which block it is.

        Raises:
            CheckpointError: its shape can't be, or its part is taken by a tensor of another name.
        """
        slot = locate(info.name)
        if slot is None or self._beyond_last_layer(slot.layer):
            return None
        mlp = self.mlps.setdefault(slot.layer, GatedMlp(slot.layer))
        known = mlp.tensors.setdefault(slot.part.role, info)
        if known != info:
            raise CheckpointError(f"{known.name} and {info.name} are both the {slot.part.role} part of one MLP")
        if info.dtype in PLAIN_DTYPES:
            _check_shapes(mlp)
        return slot

    def widths(self) -> dict[int, int]:
        """Neurons in each layer whose down projection was seen in a plain number format."""
        return {
            layer: mlp.width
            for layer, mlp in self.mlps.items()
            if "down" in mlp.tensors and mlp.tensors["down"].dtype in PLAIN_DTYPES
        }

    def _beyond_last_layer(self, layer: int) -> bool:
        # Multi-token-prediction heads are stored as layers after the last; they are no part of the model that answers.
        return self.num_hidden_layers is not None and layer >= self.num_hidden_layers


def _check_shapes(mlp: GatedMlp) -> None:
    shapes = {role: info.shape for role, info in mlp.tensors.items() if info.dtype in PLAIN_DTYPES}
    upright = {shape[::-1] if role == "down" else shape for role, shape in shapes.items()}
    if any(len(shape) != 2 for shape in upright) or len(upright) > 1:  # noqa: PLR2004 - matrices
        described = ", ".join(f"{info.name} {list(info.shape)}" for info in mlp.tensors.values())
        raise CheckpointError(f"not the shapes of a gated MLP: {described}")
