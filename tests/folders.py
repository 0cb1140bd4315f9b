# SPDX-License-Identifier: Apache-2.0
"""Writes tiny model folders as Hugging Face lays them out, down to the bytes, so that they can also be wrong."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vllm_surgery.model.checkpoint import BYTES_PER_NUMBER, INDEX_FILE
from vllm_surgery.model.conventions import MLP_ROLES
from vllm_surgery.model.tensor_info import TensorInfo

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

LLAMA = "LlamaForCausalLM"


@dataclass(frozen=True)
class Tensor:
    """A tensor as a safetensors file stores it."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def info(self, name: str) -> TensorInfo:
        return TensorInfo(name, self.dtype, self.shape)


def random_tensor(dtype: str, shape: Sequence[int], *seed: int) -> Tensor:
    """Weights as a trained model might have; for formats that numpy doesn't know, random bytes."""
    numbers = np.random.default_rng(seed or (0,)).standard_normal(shape)
    if dtype == "BF16":
        data = (numbers.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    elif dtype in {"F64", "F32", "F16"}:
        data = numbers.astype(f"<f{BYTES_PER_NUMBER[dtype]}").tobytes()
    else:
        data = numbers.tobytes()[: numbers.size * BYTES_PER_NUMBER[dtype]]
    return Tensor(dtype, tuple(shape), data)


def mlp_tensors(
    widths: Sequence[int], hidden: int = 4, dtype: str = "F32", prefix: str = "model", seed: int = 0
) -> dict[str, Tensor]:
    """The gated MLPs of a model, one a width. The weights depend on the seed and the layer, not on the prefix."""
    tensors = {}
    for layer, width in enumerate(widths):
        for number, part_name in enumerate(MLP_ROLES):
            shape = (hidden, width) if part_name == "down" else (width, hidden)
            name = f"{prefix}.layers.{layer}.mlp.{part_name}_proj.weight"
            tensors[name] = random_tensor(dtype, shape, seed, layer, number)
    return tensors


LAYOUTS = ("own", "mixtral", "shared", "shared with biases", "scaled")
"""The ways in which families store their experts: see `expert_tensors`."""


def expert_tensors(
    layout: str, layers: Sequence[int] = (0, 1), experts: int = 4, *, width: int = 6, hidden: int = 8,
    dtype: str = "F32", seed: int = 0, prefix: str = "model",
) -> dict[str, Tensor]:  # fmt: skip
    """The routed experts of some layers.

    Args:
        layout: `own` tensors for each expert, under Qwen's names or `mixtral`'s; tensors that they all share, alone or
            `with biases` (GPT-OSS); or shared and `scaled` (Gemma 4), with the names of each.
    """
    tensors: dict[str, Tensor] = {}
    for layer in layers:
        for part, shape in _expert_parts(layout, experts, width, hidden).items():
            name = f"{prefix}.layers.{layer}.{part}"
            tensors[name] = random_tensor(dtype, shape, seed, layer, *part.encode())
    return tensors


def _expert_parts(layout: str, experts: int, width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    if layout in {"own", "mixtral"}:
        block = "mlp" if layout == "own" else "block_sparse_moe"
        gate, up, down = ("gate_proj", "up_proj", "down_proj") if layout == "own" else ("w1", "w3", "w2")
        shapes = {gate: (width, hidden), up: (width, hidden), down: (hidden, width)}
        own = {f"{block}.experts.{e}.{part}.weight": shape for e in range(experts) for part, shape in shapes.items()}
        return {f"{block}.gate.weight": (experts, hidden), **own}
    if layout == "scaled":
        return {
            "experts.gate_up_proj": (experts, 2 * width, hidden),
            "experts.down_proj": (experts, hidden, width),
            "router.proj.weight": (experts, hidden),
            "router.scale": (hidden,),
            "router.per_expert_scale": (experts,),
        }
    biases = {
        "mlp.experts.gate_up_proj_bias": (experts, 2 * width),
        "mlp.experts.down_proj_bias": (experts, hidden),
        "mlp.router.bias": (experts,),
    }
    return {
        "mlp.router.weight": (experts, hidden),
        "mlp.experts.gate_up_proj": (experts, hidden, 2 * width),
        "mlp.experts.down_proj": (experts, width, hidden),
        **(biases if layout == "shared with biases" else {}),
    }


def write_experts(folder: Path, layout: str, *, experts: int = 4, shards: int = 1, **options: Any) -> Path:
    """A whole small model with two layers of routed experts; `scaled` ones have a dense MLP beside them."""
    dense = mlp_tensors((6, 6), options.get("hidden", 8), options.get("dtype", "F32"))
    tensors = expert_tensors(layout, experts=experts, **options) | (dense if layout == "scaled" else {})
    config = config_of((6, 6), options.get("hidden", 8), num_experts=experts, architectures=["SomeMoeForCausalLM"])
    return write_folder(folder, tensors, config, shards=shards)


def config_of(widths: Sequence[int], hidden: int = 4, **more: object) -> dict[str, Any]:
    """A config.json for `mlp_tensors` of the same widths."""
    return {
        "architectures": [LLAMA],
        "num_hidden_layers": len(widths),
        "hidden_size": hidden,
        "intermediate_size": widths[0],
        **more,
    }


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file, written by hand."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, tensor in tensors.items():
        end = start + len(tensor.data)
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    write_raw(path, json.dumps(header).encode(), b"".join(tensor.data for tensor in tensors.values()))


def write_raw(path: Path, header: bytes, data: bytes = b"", length: int | None = None) -> None:
    """A safetensors file with any header, or with a length that lies about it."""
    claimed = len(header) if length is None else length
    path.write_bytes(claimed.to_bytes(8, "little") + header + data)


def write_folder(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, object], *, shards: int = 1) -> Path:
    """A model folder: config.json and one file of tensors, or several with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors)
        return folder
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(tensors.items())[number::shards])
        write_safetensors(folder / file, part)
        weight_map |= dict.fromkeys(part, file)
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def write_model(folder: Path, widths: Sequence[int] = (6, 6), *, shards: int = 1, **options: Any) -> Path:
    """A whole small Llama; `options` are those of `mlp_tensors`, such as `dtype` and `prefix`."""
    embedding = {"model.embed_tokens.weight": random_tensor("F32", (8, options.get("hidden", 4)))}
    tensors = embedding | mlp_tensors(widths, **options)
    return write_folder(folder, tensors, config_of(widths, options.get("hidden", 4)), shards=shards)
