# SPDX-License-Identifier: Apache-2.0
"""Writes tiny model folders as Hugging Face lays them out, down to the bytes, so that they can also be wrong."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vllm_surgery.anatomy import ROLES, TensorInfo
from vllm_surgery.checkpoint import BYTES_PER_NUMBER, INDEX_FILE

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
        for number, role in enumerate(ROLES):
            shape = (hidden, width) if role == "down" else (width, hidden)
            name = f"{prefix}.layers.{layer}.mlp.{role}_proj.weight"
            tensors[name] = random_tensor(dtype, shape, seed, layer, number)
    return tensors


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
