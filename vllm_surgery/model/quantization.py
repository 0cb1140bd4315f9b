# SPDX-License-Identifier: Apache-2.0
"""Quantisation schemes: the number formats of a model's stored weights, from its config."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from vllm_surgery.patch.units import Kind

Codes: TypeAlias = Literal["fp8", "integers", "mxfp4"]
"""Kinds of codes: eight-bit floats, integers of any width, or four-bit floats in blocks of 32."""

_WORD_BITS = 32

# With the names that vLLM gives some of them once it has read the config.
_BY_METHOD: dict[str, Codes] = {
    "fp8": "fp8",
    "fbgemm_fp8": "fp8",
    "modelopt FP8": "fp8",
    "gptq": "integers",
    "gptq_marlin": "integers",
    "auto_gptq": "integers",
    "awq": "integers",
    "awq_marlin": "integers",
    "auto_awq": "integers",
    "mxfp4": "mxfp4",
    "gpt_oss_mxfp4": "mxfp4",
}
_METHOD_OF_GROUPS = "compressed-tensors"

_SPARED = ("ignore", "modules_to_not_convert", "ignored_layers", "exclude_modules", "dynamic")
"""Keys under which configs name modules, or patterns of them, that aren't quantised."""

_ROUTED = re.compile(r"(?<!shared_)experts?\b")

METHODS = "what fp8, compressed-tensors (FP8, INT8, packed integers), gptq, awq and mxfp4 make of weights"
"""The known schemes in words."""


@dataclass(frozen=True)
class Scheme:
    """The storage scheme of a model's quantised weights.

    Attributes:
        method: `quant_method` of the config.
        codes: what their codes are; None where that isn't known, or not one for all.
        blocks: whether scales belong to rectangles of weights, so that no neuron has one of its own.
        one_scale: whether each weight has one scale for all its codes.
        per_word: packed codes to a 32-bit word; None where they aren't packed that way.
        transposed: whether codes are packed along the outputs (AWQ), not along the inputs.
        spares_experts: whether routed experts are named among what isn't quantised.
    """

    method: str
    codes: Codes | None
    blocks: bool = False
    one_scale: bool = False
    per_word: int | None = None
    transposed: bool = False
    spares_experts: bool = False

    def signs_codes(self, kind: Kind) -> bool:
        """True if a unit's sign goes on codes: they have one, or there is no scale of the unit's own."""
        return self.codes != "integers" or (kind != "experts" and self.one_scale)

    @classmethod
    def of(cls, config: dict[str, Any]) -> Scheme | None:
        """Reads `quantization_config` of a model's config.json. None where the model isn't quantised.

        A model whose weights are rotated before they are quantised is stored in no known scheme: its neurons and
        experts are not what the tensors' rows and columns say.
        """
        section = _section(config)
        if section is None:
            return None
        method = str(section.get("quant_method", "unnamed"))
        if method == _METHOD_OF_GROUPS:
            return cls(method, None) if section.get("transform_config") else cls._of_groups(section)
        bits = section.get("bits", section.get("w_bit"))
        return cls(
            method,
            codes=_BY_METHOD.get(f"{method} {section['quant_algo']}" if "quant_algo" in section else method),
            blocks=section.get("weight_block_size") is not None,
            per_word=_per_word(bits),
            transposed="awq" in method,
            spares_experts=_spares_experts(section),
        )

    @classmethod
    def _of_groups(cls, section: dict[str, Any]) -> Scheme:
        groups = section.get("config_groups")
        weights = [
            found for group in (groups.values() if isinstance(groups, dict) else ()) if (found := _weights(group))
        ]
        bits = {item.get("num_bits") for item in weights}
        codes = {_codes(item) for item in weights}
        return cls(
            _METHOD_OF_GROUPS,
            codes=codes.pop() if len(codes) == 1 else None,
            blocks=any(item.get("strategy") == "block" for item in weights),
            one_scale=bool(weights) and all(item.get("strategy") == "tensor" for item in weights),
            per_word=_per_word(bits.pop()) if len(bits) == 1 else None,
            spares_experts=_spares_experts(section),
        )


def _section(config: dict[str, Any]) -> dict[str, Any] | None:
    text = config.get("text_config")
    places = [config, text if isinstance(text, dict) else {}]
    keys = ("quantization_config", "compression_config")
    found = (place.get(key) for place in places for key in keys)
    return next((section for section in found if isinstance(section, dict)), None)


def _spares_experts(section: dict[str, Any]) -> bool:
    lists = (section.get(key) for key in _SPARED)
    spared = [str(name) for names in lists if isinstance(names, list | dict) for name in names]
    return any(_ROUTED.search(name) for name in spared)


def _weights(group: object) -> dict[str, Any]:
    weights = group.get("weights") if isinstance(group, dict) else None
    return weights if isinstance(weights, dict) else {}


def _codes(weights: dict[str, Any]) -> Codes | None:
    match weights.get("type"), weights.get("num_bits"):
        case "float", 8:
            return "fp8"
        case "int", int():
            return "integers"
    return None


def _per_word(bits: object) -> int | None:
    return _WORD_BITS // bits if isinstance(bits, int) and bits > 0 and _WORD_BITS % bits == 0 else None


Stores: TypeAlias = Literal["weight", "codes", "scales", "zeros", "order", "bias"]
"""The share of a weight that a tensor stores: all of it (or a code of eight bits a number), codes packed into words,
scales, zero points, the group of each input, or the bias that belongs to it."""

WHOLE: tuple[Stores, Stores] = ("weight", "codes")
"""The tensors that stand for their weight: a weight has one of these."""


@dataclass(frozen=True)
class TensorSuffix:
    """Name suffix and layout of one kind of tensor.

    Attributes:
        suffix: of its name.
        stores: what it holds.
        out_axis: the axis that counts a weight's outputs, as the original's first axis does.
    """

    suffix: str
    stores: Stores
    out_axis: int = 0


PLAIN = TensorSuffix(".weight", "weight")

_SPELLINGS = (
    PLAIN,
    TensorSuffix(".weight_packed", "codes"),
    TensorSuffix(".weight_scale", "scales"),
    TensorSuffix(".weight_scale_inv", "scales"),
    TensorSuffix(".weight_zero_point", "zeros"),
    TensorSuffix(".weight_g_idx", "order"),
    # GPTQ and AWQ store the transpose.
    TensorSuffix(".qweight", "codes", 1),
    TensorSuffix(".scales", "scales", 1),
    TensorSuffix(".qzeros", "zeros", 1),
    TensorSuffix(".g_idx", "order"),
    TensorSuffix(".bias", "bias"),
)
# Of all experts in one tensor, where no `.weight` stands in the name.
_STACKED = (TensorSuffix("_blocks", "codes"), TensorSuffix("_scales", "scales"))


def split_suffix(name: str) -> tuple[str, TensorSuffix]:
    """The name that the weight would have if it weren't quantised, and how this tensor of it is named."""
    for suffix in _SPELLINGS:
        if name.endswith(suffix.suffix):
            return name.removesuffix(suffix.suffix) + PLAIN.suffix, suffix
    for suffix in _STACKED:
        if name.endswith(suffix.suffix):
            return name.removesuffix(suffix.suffix), suffix
    return name, PLAIN
