# SPDX-License-Identifier: Apache-2.0
"""The blocks of a family's model, with the names that transformers gives them, stored in any of the known kinds."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from tests.planning.test_mxfp4_experts import E2M1
from tests.quantised import kinds, stored

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.quantised import Kind, Tensors

PLAIN = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
QUANTISED = kinds(32)
MXFP4 = "mxfp4"
KINDS = (*PLAIN, *QUANTISED, MXFP4)
"""The columns of the page, in words."""

_LAYER = r"(?:model|model\.language_model|language_model\.model)\.layers\.(?P<layer>[0-9]+)\."
_BLOCK = re.compile(rf"{_LAYER}(?:mlp|feed_forward|block_sparse_moe|experts|router)\..*")
_WEIGHT = re.compile(
    rf"(?P<start>{_LAYER}(?:mlp|block_sparse_moe|feed_forward)\.(?:experts\.(?P<expert>[0-9]+)\.|(?P<shared>shared_experts?)\.)?"
    r"(?P<role>gate_up_proj|gate_proj|up_proj|down_proj|w1|w2|w3)\.)weight"
)
SHARED = -1
_ROLES = {"w1": "gate", "w2": "down", "w3": "up"}
_MX_BLOCK = 32
_MX_SMALLEST = 1e-30  # Keeps the logarithm of a block of zeros finite.


@dataclass(frozen=True)
class Checkpoint:
    """A small checkpoint.

    Attributes:
        kind: how its projections are stored; None where they are plain numbers or MXFP4.
        starts: by layer, expert (None in a dense MLP, -1 for the one that all tokens share) and role, how the names of
            a projection's tensors start.
    """

    folder: Path
    word: str
    kind: Kind | None
    starts: Mapping[tuple[int, int | None, str], str]

    def parts(self, tensors: Tensors, layer: int, expert: int | None, part_name: str) -> Tensors:
        """A projection's tensors, by the ends of their names."""
        start = self.starts[layer, expert, part_name]
        return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}

    def stores_experts(self) -> bool:
        """Whether experts, if there are any, are stored as they are in real checkpoints of this kind.

        No tool is known that quantises experts which share one tensor, but to MXFP4. Gemma 4's have a scale of their
        own, which takes their gains however they are stored.
        """
        return self.stores_inside() or any("per_expert_scale" in name for name in stored(self.folder))

    def stores_inside(self) -> bool:
        """The same of the weights inside experts."""
        return self.word in PLAIN or self.word == MXFP4 or self.own_experts()

    def own_experts(self) -> bool:
        """Whether each expert has tensors of its own."""
        return any(expert is not None and expert != SHARED for _, expert, _ in self.starts)


def store(model: Path, word: str, folder: Path) -> Checkpoint | None:
    """The MLPs, experts and routers of a `model` in bf16, in a folder of their own.

    Args:
        model: a folder that transformers wrote.
        word: one of `KINDS`.
        folder: where to.

    Returns:
        The checkpoint; None where the family is not stored in this kind.
    """
    config = json.loads((model / "config.json").read_text())
    blocks = {name: tensor for name, tensor in stored(model).items() if _BLOCK.fullmatch(name)}
    starts = _starts(blocks)
    kind = QUANTISED.get(word)
    if word == MXFP4:
        if config["architectures"] != ["GptOssForCausalLM"]:
            return None
        tensors, quantization = _mxfp4(blocks), {"quant_method": "mxfp4"}
    elif kind is None:
        tensors, quantization = {name: tensor.to(PLAIN[word]) for name, tensor in blocks.items()}, None
    elif not starts:
        return None
    else:
        tensors, quantization = _quantised(blocks, kind), kind.config
    folder.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    if quantization is not None:
        config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config))
    return Checkpoint(folder, word, kind, starts)


def _starts(blocks: Tensors) -> dict[tuple[int, int | None, str], str]:
    found = filter(None, map(_WEIGHT.fullmatch, blocks))
    return {
        (
            int(match["layer"]),
            SHARED if match["shared"] else None if match["expert"] is None else int(match["expert"]),
            _ROLES.get(match["role"], match["role"].removesuffix("_proj")),
        ): match["start"]
        for match in found
    }


def _quantised(blocks: Tensors, kind: Kind) -> Tensors:
    tensors: Tensors = {}
    for name, weight in blocks.items():
        if match := _WEIGHT.fullmatch(name):
            tensors |= {match["start"] + end: part for end, part in kind.quantise(weight.float()).items()}
        else:
            tensors[name] = weight
    return tensors


def _mxfp4(blocks: Tensors) -> Tensors:
    tensors: Tensors = {}
    for name, weight in blocks.items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = to_mxfp4(weight.float().transpose(1, 2))
        else:
            tensors[name] = weight
    return tensors


def to_mxfp4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes, two a byte, ``[..., out, blocks, 16]`` and biased exponents ``[..., out, blocks]`` of ``[..., out, in]``."""
    grouped = weight.unflatten(-1, (-1, _MX_BLOCK))
    largest_exponent = 2  # Of four-bit floats, whose largest is 6.
    exponents = grouped.abs().amax(-1).clamp(min=_MX_SMALLEST).log2().floor() - largest_exponent
    sizes = (grouped / exponents.exp2().unsqueeze(-1)).abs().unsqueeze(-1)
    codes = (sizes - E2M1[:8]).abs().argmin(-1) + 8 * (grouped < 0)
    return (codes[..., 0::2] | codes[..., 1::2] << 4).to(torch.uint8), (exponents + 127).to(torch.uint8)


def of_mxfp4(codes: torch.Tensor, exponents: torch.Tensor) -> torch.Tensor:
    """What `to_mxfp4` made, in float64."""
    each = torch.stack([codes & 15, codes >> 4], -1).flatten(-2).long()
    return (E2M1[each] * (exponents.double() - 127).exp2().unsqueeze(-1)).flatten(-2)
