# SPDX-License-Identifier: Apache-2.0
"""Tiny quantised checkpoints, and what they stand for. Both are the tests' own: they share nothing with the package."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from tests.models import make_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Tensors = dict[str, torch.Tensor]

LAYERS, HIDDEN, WIDTH, EXPERTS, GROUP = 2, 16, 24, 4, 8
FP8_MAX = 448.0
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class Kind:
    """A way to store weights.

    Attributes:
        config: `quantization_config` of config.json.
        quantise: makes of a weight ``[out, in]`` the tensors that store it, by the ends of their names.
        dequantise: gives what such tensors stand for, in float64.
        scale: the end of the scales' name.
        out_axis: the axis of the scales that counts outputs; None where no output has scales of its own.
    """

    config: dict[str, Any]
    quantise: Callable[[torch.Tensor], Tensors]
    dequantise: Callable[[Tensors], torch.Tensor]
    scale: str
    out_axis: int | None = 0


def _fp8(weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return (weight / scales).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)


def _fp8_tensor(weight: torch.Tensor) -> Tensors:
    scale = weight.abs().max() / FP8_MAX
    return {"weight": _fp8(weight, scale), "weight_scale": scale.float(), "input_scale": torch.tensor(0.25)}


def _fp8_channel(weight: torch.Tensor) -> Tensors:
    scales = (weight.abs().amax(1, keepdim=True) / FP8_MAX).bfloat16()
    return {"weight": _fp8(weight, scales.float()), "weight_scale": scales}


def _spread(blocks: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    rows, columns = (whole // number for whole, number in zip(shape, blocks.shape, strict=True))
    return blocks.repeat_interleave(rows, 0).repeat_interleave(columns, 1)


def _fp8_block(size: int) -> Callable[[torch.Tensor], Tensors]:
    def quantise(weight: torch.Tensor) -> Tensors:
        blocks = weight.unfold(0, size, size).unfold(1, size, size).abs().amax((2, 3)) / FP8_MAX
        return {"weight": _fp8(weight, _spread(blocks, weight.shape)), "weight_scale_inv": blocks.float()}

    return quantise


def _of_fp8(tensors: Tensors) -> torch.Tensor:
    codes = tensors["weight"].double()
    if "weight_scale_inv" in tensors:
        return codes * _spread(tensors["weight_scale_inv"].double(), codes.shape)
    return codes * tensors["weight_scale"].double()


def _int8(weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    codes = (weight / scales).round().clamp(-128, 127).to(torch.int8)
    codes[:, 3] = -128  # A code that has no opposite, in a column and in every row.
    return codes


def _int8_channel(weight: torch.Tensor) -> Tensors:
    scales = weight.abs().amax(1, keepdim=True) / 127
    return {"weight": _int8(weight, scales), "weight_scale": scales.float()}


def _int8_tensor(weight: torch.Tensor) -> Tensors:
    scale = (weight.abs().max() / 127).reshape(1)
    return {"weight": _int8(weight, scale), "weight_scale": scale.float()}


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Unsigned codes along the last axis as 32-bit words, the first in the lowest bits."""
    per_word = 32 // bits
    grouped = codes.long().unflatten(-1, (-1, per_word))
    words = (grouped << (torch.arange(per_word) * bits)).sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def unpack(words: torch.Tensor, bits: int) -> torch.Tensor:
    shifts = torch.arange(32 // bits) * bits
    return ((words.long().unsqueeze(-1) >> shifts) & ((1 << bits) - 1)).flatten(-2)


def _grouped(
    weight: torch.Tensor, size: int, bits: int, zeros: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unsigned codes ``[out, in]``, scales and zero points ``[out, groups]``."""
    groups = weight.unflatten(1, (-1, size))
    top, half = (1 << bits) - 1, 1 << (bits - 1)
    low, high = groups.amin(2), groups.amax(2)
    scales = ((high - low) / top if zeros else groups.abs().amax(2) / (half - 1)).half()
    points = (-low / scales.float()).round().clamp(0, top).long() if zeros else torch.full(scales.shape, half)
    codes = (groups / scales.float().unsqueeze(2)).round().long() + points.unsqueeze(2)
    codes = codes.clamp(0, top).flatten(1)
    codes[:, 3] = 0  # The code that has no opposite around the middle.
    return codes, scales, points


def _standing_for(codes: torch.Tensor, scales: torch.Tensor, points: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    return (codes - points[:, group]).double() * scales.double()[:, group]


def _in_order(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The group of each input. Both tensors count them along their second axis."""
    return torch.arange(codes.shape[1]) // (codes.shape[1] // scales.shape[1])


def _packed(size: int, zeros: bool) -> Callable[[torch.Tensor], Tensors]:
    def quantise(weight: torch.Tensor) -> Tensors:
        codes, scales, points = _grouped(weight, size, 4, zeros)
        tensors = {"weight_packed": pack(codes, 4), "weight_scale": scales, "weight_shape": torch.tensor(weight.shape)}
        if zeros:
            tensors["weight_zero_point"] = pack(points.T, 4).T
        return tensors

    return quantise


def _of_packed(tensors: Tensors) -> torch.Tensor:
    codes, scales = unpack(tensors["weight_packed"], 4), tensors["weight_scale"]
    stored = tensors.get("weight_zero_point")
    points = torch.full(scales.shape, 8) if stored is None else unpack(stored.T, 4).T
    return _standing_for(codes, scales, points, _in_order(codes, scales))


def _gptq(size: int, bits: int, zeros: bool = True, act_order: bool = False) -> Callable[[torch.Tensor], Tensors]:
    def quantise(weight: torch.Tensor) -> Tensors:
        order = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(1))
        order = order if act_order else torch.arange(weight.shape[1])
        codes, scales, points = _grouped(weight[:, order], size, bits, zeros)
        back = order.argsort()
        return {
            "qweight": pack(codes[:, back], bits).T,
            "qzeros": pack((points - 1).clamp(min=0).T, bits),  # The first version of the format stores one less.
            "scales": scales.T,
            "g_idx": (back // size).int(),
        }

    return quantise


def _of_gptq(bits: int) -> Callable[[Tensors], torch.Tensor]:
    def dequantise(tensors: Tensors) -> torch.Tensor:
        codes, points = unpack(tensors["qweight"].T, bits), unpack(tensors["qzeros"], bits).T + 1
        return _standing_for(codes, tensors["scales"].T, points, tensors["g_idx"].long())

    return dequantise


def _awq(size: int) -> Callable[[torch.Tensor], Tensors]:
    def quantise(weight: torch.Tensor) -> Tensors:
        codes, scales, points = _grouped(weight, size, 4, zeros=True)
        packed = [pack(part.T.unflatten(-1, (-1, 8))[..., AWQ_ORDER].flatten(-2), 4) for part in (codes, points)]
        return {"qweight": packed[0], "qzeros": packed[1], "scales": scales.T}

    return quantise


def _of_awq(tensors: Tensors) -> torch.Tensor:
    back = torch.tensor(AWQ_ORDER).argsort()
    codes, points = (
        unpack(tensors[name], 4).unflatten(-1, (-1, 8))[..., back].flatten(-2).T for name in ("qweight", "qzeros")
    )
    scales = tensors["scales"].T
    return _standing_for(codes, scales, points, _in_order(codes, scales))


def _compressed(bits: int, kind: str, **more: Any) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": kind, "symmetric": True, "dynamic": False, **more}
    inputs = {"num_bits": 8, "type": kind, "strategy": "token", "symmetric": True, "dynamic": True}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs if bits == 8 else None}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized" if bits == 4 else f"{kind}-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


def kinds(size: int) -> dict[str, Kind]:
    """Every kind, where weights share scales in groups or blocks of `size`."""
    gptq = {"quant_method": "gptq", "group_size": size, "lm_head": False, "desc_act": False}
    awq = {"quant_method": "awq", "bits": 4, "group_size": size, "zero_point": True}
    blocks = {"quant_method": "fp8", "weight_block_size": [size, size], "activation_scheme": "dynamic"}
    tensor, channel, group = {"strategy": "tensor"}, {"strategy": "channel"}, {"strategy": "group", "group_size": size}
    per_tensor = {"quant_method": "fp8", "activation_scheme": "static"}
    by_activations = {**gptq, "bits": 4, "sym": False, "desc_act": True}
    return {
        "fp8 per tensor": Kind(per_tensor, _fp8_tensor, _of_fp8, "weight_scale", None),
        "fp8 per channel": Kind(_compressed(8, "float", **channel), _fp8_channel, _of_fp8, "weight_scale"),
        "fp8 in blocks": Kind(blocks, _fp8_block(size), _of_fp8, "weight_scale_inv", None),
        "int8 per channel": Kind(_compressed(8, "int", **channel), _int8_channel, _of_fp8, "weight_scale"),
        "int8 per tensor": Kind(_compressed(8, "int", **tensor), _int8_tensor, _of_fp8, "weight_scale", None),
        "int4 in groups": Kind(_compressed(4, "int", **group), _packed(size, zeros=False), _of_packed, "weight_scale"),
        "int4 with zero points": Kind(
            _compressed(4, "int", symmetric=False, **group), _packed(size, zeros=True), _of_packed, "weight_scale"
        ),
        "gptq": Kind({**gptq, "bits": 4, "sym": True}, _gptq(size, 4, zeros=False), _of_gptq(4), "scales", 1),
        "gptq with zero points": Kind({**gptq, "bits": 4, "sym": False}, _gptq(size, 4), _of_gptq(4), "scales", 1),
        "gptq by activations": Kind(by_activations, _gptq(size, 4, act_order=True), _of_gptq(4), "scales", 1),
        "gptq of 8 bits": Kind({**gptq, "bits": 8, "sym": False}, _gptq(size, 8), _of_gptq(8), "scales", 1),
        "awq": Kind(awq, _awq(size), _of_awq, "scales", 1),
    }


KINDS = kinds(GROUP)


def weights(*seed: int) -> Tensors:
    """A gated MLP's three matrices."""
    source = torch.Generator().manual_seed(sum(number * 1000**place for place, number in enumerate(seed)))
    shapes = {"gate": (WIDTH, HIDDEN), "up": (WIDTH, HIDDEN), "down": (HIDDEN, WIDTH)}
    return {part_name: torch.randn(shape, generator=source) for part_name, shape in shapes.items()}


def make(folder: Path, kind: Kind, *, experts: bool = False, fused: bool = False) -> Path:
    """A checkpoint with nothing but MLPs, or the experts of some.

    Args:
        folder: where.
        kind: how its weights are stored.
        experts: whether each layer has experts in place of one MLP.
        fused: whether gate and up are stored as one weight.
    """
    tensors: Tensors = {"model.norm.weight": torch.ones(HIDDEN)}
    for layer in range(LAYERS):
        for expert in range(EXPERTS if experts else 1):
            parts = weights(layer, expert)
            if fused:
                parts = {"gate_up": torch.cat([parts["gate"], parts["up"]]), "down": parts["down"]}
            for part_name, weight in parts.items():
                for end, tensor in kind.quantise(weight).items():
                    tensors[name(layer, part_name, end, expert if experts else None)] = tensor.contiguous()
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": LAYERS,
        "hidden_size": HIDDEN,
        "quantization_config": kind.config,
        **({"num_experts": EXPERTS} if experts else {}),
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def make_served(folder: Path, kind: Kind, family: str = "Llama") -> Path:
    """A random model of a family that vLLM can serve, with each projection quantised."""
    make_model(folder, family, torch.bfloat16)
    quantise_folder(folder, kind)
    return folder


def quantise_folder(folder: Path, kind: Kind) -> None:
    """Quantises each projection of a model in one file, in place."""
    tensors: Tensors = {}
    for key, weight in stored(folder).items():
        if key.endswith("_proj.weight"):
            start = key.removesuffix("weight")
            tensors |= {start + end: part.contiguous() for end, part in kind.quantise(weight.float()).items()}
        else:
            tensors[key] = weight
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": kind.config}))


def name(layer: int, part_name: str, end: str, expert: int | None = None) -> str:
    return f"model.layers.{layer}.mlp.{'' if expert is None else f'experts.{expert}.'}{part_name}_proj.{end}"


def stored(folder: Path) -> Tensors:
    return load_file(folder / "model.safetensors")


def parts_of(tensors: Tensors, layer: int, part_name: str, expert: int | None = None) -> Tensors:
    """The tensors of one weight, by the ends of their names."""
    start = name(layer, part_name, "", expert)
    return {key.removeprefix(start): tensor for key, tensor in tensors.items() if key.startswith(start)}
