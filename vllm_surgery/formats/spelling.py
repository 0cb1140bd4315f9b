# SPDX-License-Identifier: Apache-2.0
"""How checkpoints name the tensors that together store one weight: codes, scales and what belongs to them.

Sources: vLLM's parameter names for each format (`model_executor/layers/quantization`), the compressed-tensors,
AutoGPTQ and AutoAWQ formats, and the GPT-OSS checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Stores: TypeAlias = Literal["weight", "codes", "scales", "zeros", "order", "bias"]
"""What a tensor stores of a weight: all of it (or a code of eight bits a number), codes packed into words, scales, zero
points, the group of each input, or the bias that belongs to it."""

WHOLE: tuple[Stores, Stores] = ("weight", "codes")
"""The tensors that stand for their weight: a weight has one of these."""


@dataclass(frozen=True)
class Spelling:
    """How one kind of tensor is named and laid out.

    Attributes:
        suffix: of its name.
        stores: what it holds.
        out_axis: the axis that counts a weight's outputs, as the original's first axis does.
    """

    suffix: str
    stores: Stores
    out_axis: int = 0


PLAIN = Spelling(".weight", "weight")

_SPELLINGS = (
    PLAIN,
    Spelling(".weight_packed", "codes"),
    Spelling(".weight_scale", "scales"),
    Spelling(".weight_scale_inv", "scales"),
    Spelling(".weight_zero_point", "zeros"),
    Spelling(".weight_g_idx", "order"),
    # GPTQ and AWQ store the transpose.
    Spelling(".qweight", "codes", 1),
    Spelling(".scales", "scales", 1),
    Spelling(".qzeros", "zeros", 1),
    Spelling(".g_idx", "order"),
    Spelling(".bias", "bias"),
)
# Of all experts in one tensor, where no `.weight` stands in the name.
_STACKED = (Spelling("_blocks", "codes"), Spelling("_scales", "scales"))


def spelled(name: str) -> tuple[str, Spelling]:
    """The name that the weight would have if it weren't quantised, and how this tensor of it is named."""
    for spelling in _SPELLINGS:
        if name.endswith(spelling.suffix):
            return name.removesuffix(spelling.suffix) + PLAIN.suffix, spelling
    for spelling in _STACKED:
        if name.endswith(spelling.suffix):
            return name.removesuffix(spelling.suffix), spelling
    return name, PLAIN
