# SPDX-License-Identifier: Apache-2.0
"""Tensor naming conventions of model families: which name holds which part of which unit.

One table. A new family is a new row; but for the names of routers (`vllm_surgery.model.routers`) nothing else
knows a family.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from vllm_surgery.model.quantization import PLAIN, TensorSuffix, split_suffix
from vllm_surgery.patch.units import INDEX_PATTERN, LAYER_PATTERN

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vllm_surgery.patch.units import Kind

BlockKind: TypeAlias = Literal["mlp", "shared", "experts", "expert_neurons"]
PartName: TypeAlias = Literal["gate", "up", "gate_up", "gate_up_bias", "down", "down_bias", "scale"]

MLP_ROLES: tuple[PartName, ...] = ("gate", "up", "down")
"""The three matrices of a gated MLP, ``down · (act(gate) * up)``."""

HALVES: tuple[PartName, PartName] = ("gate", "up")
"""The halves of ``gate_up``, in this order."""


@dataclass(frozen=True)
class Part:
    """The part of its layer's units that a tensor holds.

    Attributes:
        name: which part of the units it holds; ``scale`` is a number by which the router's weight is multiplied.
        unit_axis: the axis that counts the units; None where the whole tensor is one expert's.
        rank: how many axes it has.
        split: the axis along which ``gate_up`` is all of gate and then all of up; None where it is laid out otherwise.
        carries: whether a unit's gain goes on it. Where several parts do, the gain goes on each.
        optional: whether only some of the families have it.
        neuron_axis: of an expert's own matrix, the axis that counts the expert's neurons; None where shapes must tell.
    """

    name: PartName
    unit_axis: int | None
    rank: int = 2
    split: int | None = None
    carries: bool = False
    optional: bool = False
    neuron_axis: int | None = None

    @property
    def halves(self) -> bool:
        """True if the units are counted twice along their axis, in gate and then in up."""
        return self.split is not None and self.split == self.unit_axis

    def width(self, shape: tuple[int, ...]) -> int:
        """The number of units in a tensor of this `shape`."""
        if self.unit_axis is None:
            return 1
        return shape[self.unit_axis] // (2 if self.halves else 1)


@dataclass(frozen=True)
class Convention:
    """A row of the table: how some families name the parts of a block.

    Attributes:
        block: whose units the tensors belong to: ``mlp`` is the dense gated MLP of a layer, ``experts`` its routed
            experts, ``shared`` the gated MLP that takes all of its tokens beside those, ``expert_neurons`` one expert.
        pattern: matches a whole tensor name, with groups ``layer``, ``part`` and, where each expert has tensors of its
            own, ``expert``.
        parts: the words that ``part`` may be.
    """

    name: str
    block: BlockKind
    pattern: re.Pattern[str]
    parts: Mapping[str, Part]

    @property
    def carriers(self) -> list[Part]:
        """The parts that a unit's gain goes on."""
        return [part for part in self.parts.values() if part.carries]


ROOTS = ("model", "model.language_model", "language_model.model", "language_model", "thinker.model")
"""Name prefixes of the text model: alone, inside a multimodal model, in that model's older spellings, and in one that
also speaks (Qwen-Omni). DeepSeek V4 has none. Vision and audio towers have others, so that their MLPs are never taken
for the language model's."""

IN_LAYER = rf"(?:(?:{'|'.join(map(re.escape, ROOTS))})\.)?layers\.(?P<layer>{LAYER_PATTERN})"
"""The beginning of the names of the text model's layers."""

_BLOCK = "(?:mlp|feed_forward)"
_EXPERT = rf"(?P<expert>{INDEX_PATTERN})"

_GATED_MLP = {
    "gate_proj": Part("gate", 0),
    "up_proj": Part("up", 0),
    "gate_up_proj": Part("gate_up", 0, split=0),
    "down_proj": Part("down", 1, carries=True),
}

_W1_W2_W3 = {"w1": Part("gate", 0), "w3": Part("up", 0), "w2": Part("down", 1, carries=True)}
"""A gated MLP's parts, as Llama's own format names them."""

CONVENTIONS: tuple[Convention, ...] = (
    Convention(
        name="gated MLP (Llama, Mistral, Qwen, Gemma, Phi-3, the dense layers of DeepSeek, GLM and Llama 4)",
        block="mlp",
        pattern=re.compile(rf"{IN_LAYER}\.{_BLOCK}\.(?P<part>[a-z_]+)\.weight"),
        parts=_GATED_MLP,
    ),
    Convention(
        name="gated MLP (InternLM 2, and Mistral in its own format)",
        block="mlp",
        pattern=re.compile(rf"{IN_LAYER}\.feed_forward\.(?P<part>w[123])\.weight"),
        parts=_W1_W2_W3,
    ),
    Convention(
        name="shared expert (Qwen-MoE, DeepSeek, GLM-MoE, Llama 4, ERNIE, Hunyuan)",
        block="shared",
        pattern=re.compile(
            rf"{IN_LAYER}\.(?:{_BLOCK}|block_sparse_moe|ffn)\.(?:shared_experts?|shared_mlp)\.(?P<part>[a-z_]+)\.weight"
        ),
        parts=_GATED_MLP,
    ),
    Convention(
        name="shared expert (Granite MoE)",
        block="shared",
        pattern=re.compile(rf"{IN_LAYER}\.shared_mlp\.(?P<part>[a-z_]+)\.weight"),
        parts={
            "input_linear": Part("gate_up", 0, split=0),
            "output_linear": Part("down", 1, carries=True),
        },
    ),
    Convention(
        name="shared expert (DeepSeek V4)",
        block="shared",
        pattern=re.compile(rf"{IN_LAYER}\.ffn\.shared_experts\.(?P<part>w[123])\.weight"),
        parts=_W1_W2_W3,
    ),
    Convention(
        name="experts with tensors of their own (Qwen-MoE, OLMoE, DeepSeek, GLM-MoE)",
        block="experts",
        pattern=re.compile(rf"{IN_LAYER}\.{_BLOCK}\.experts\.{_EXPERT}\.(?P<part>[a-z_]+)\.weight"),
        parts={
            "gate_proj": Part("gate", None, neuron_axis=0),
            "up_proj": Part("up", None, neuron_axis=0),
            "down_proj": Part("down", None, carries=True, neuron_axis=1),
        },
    ),
    Convention(
        name="experts with tensors of their own (Mixtral, DeepSeek V4, LFM 2)",
        block="experts",
        pattern=re.compile(
            rf"{IN_LAYER}\.(?:block_sparse_moe|ffn|{_BLOCK})\.experts\.{_EXPERT}\.(?P<part>w[123])\.weight"
        ),
        parts={
            "w1": Part("gate", None, neuron_axis=0),
            "w3": Part("up", None, neuron_axis=0),
            "w2": Part("down", None, carries=True, neuron_axis=1),
        },
    ),
    Convention(
        # Their gate and up lie interleaved in some of these families, stacked in others, so neither is told apart.
        name="experts in one tensor (GPT-OSS, Qwen3-VL-MoE, Qwen3.5-MoE, Llama 4; Granite MoE as transformers runs it)",
        block="experts",
        pattern=re.compile(rf"{IN_LAYER}\.(?:{_BLOCK}|block_sparse_moe)\.experts\.(?P<part>[a-z_]+)"),
        parts={
            "gate_up_proj": Part("gate_up", 0, rank=3),
            "gate_up_proj_bias": Part("gate_up_bias", 0, optional=True),
            "down_proj": Part("down", 0, rank=3, carries=True),
            "down_proj_bias": Part("down_bias", 0, carries=True, optional=True),
        },
    ),
    Convention(
        name="experts in one tensor (Granite MoE)",
        block="experts",
        pattern=re.compile(rf"{IN_LAYER}\.block_sparse_moe\.(?P<part>[a-z_]+)\.weight"),
        parts={
            "input_linear": Part("gate_up", 0, rank=3, split=1),
            "output_linear": Part("down", 0, rank=3, carries=True, neuron_axis=1),
        },
    ),
    Convention(
        name="experts in one tensor beside a dense MLP, each with a scale of its own (Gemma 4)",
        block="experts",
        pattern=re.compile(rf"{IN_LAYER}\.(?P<part>experts\.[a-z_]+|router\.[a-z_]+)"),
        parts={
            "experts.gate_up_proj": Part("gate_up", 0, rank=3, split=1),
            "experts.down_proj": Part("down", 0, rank=3, neuron_axis=1),
            "router.per_expert_scale": Part("scale", 0, rank=1, carries=True),
        },
    ),
)

INSIDE_AN_EXPERT = Convention(
    name="the gated MLP that one routed expert is",
    block="expert_neurons",
    pattern=re.compile("(?!)"),  # No tensor has this name: it is a part of those of `experts`.
    parts=_GATED_MLP,
)


@dataclass(frozen=True)
class TensorRole:
    """The place of one tensor in a model.

    Attributes:
        convention: how it is named.
        layer: whose it is.
        part: what it is to the units of its block.
        expert: whose it is alone; None where it belongs to all units of the block.
        spelling: which tensor of the weight it is, where several store one.
    """

    convention: Convention
    layer: int
    part: Part
    expert: int | None = None
    suffix: TensorSuffix = PLAIN

    @property
    def block(self) -> BlockKind:
        """Whose units it belongs to."""
        return self.convention.block

    @property
    def kind(self) -> Kind:
        """The patch format's word for those units."""
        return "neurons" if self.block == "mlp" else self.block

    @property
    def stacked(self) -> bool:
        """True if the tensor holds every expert of its layer, along its first axis."""
        return self.part.rank == 3  # noqa: PLR2004

    def inside(self, neuron_axis: int) -> TensorRole:
        """The role of one expert's own matrix in this tensor of routed experts, to that expert's neurons.

        Args:
            neuron_axis: the axis of the matrix that counts them.
        """
        part = replace(self.part, unit_axis=neuron_axis, split=None, carries=self.part.name == "down")
        return replace(self, convention=INSIDE_AN_EXPERT, part=part, expert=None)


def classify_tensor(name: str) -> TensorRole | None:
    """The slot of the tensor called `name`, or None where no convention knows it."""
    weight, suffix = split_suffix(name)
    for convention in CONVENTIONS:
        found = convention.pattern.fullmatch(weight)
        if found and found["part"] in convention.parts:
            expert = found.groupdict().get("expert")
            part = convention.parts[found["part"]]
            return TensorRole(convention, int(found["layer"]), part, None if expert is None else int(expert), suffix)
    return None


def lacking(roles: Iterable[PartName]) -> list[PartName]:
    """The matrices of a gated MLP that none of `roles` holds."""
    held = set(roles)
    held.update(HALVES if "gate_up" in held else ())
    return [part_name for part_name in MLP_ROLES if part_name not in held]
