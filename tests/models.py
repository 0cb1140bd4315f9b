# SPDX-License-Identifier: Apache-2.0
"""Tiny models with random weights, in the layouts of real families, and patches carried out on them by hand.

The arithmetic here is the tests' own: it shares nothing with the package.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

LAYERS, HIDDEN, WIDTH, VOCABULARY = 12, 128, 128, 320

_SIZES: dict[str, Any] = {
    "num_hidden_layers": LAYERS,
    "hidden_size": HIDDEN,
    "intermediate_size": WIDTH,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,  # The CPU backend's attention takes multiples of 32.
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
FAMILIES = ("Llama", "Qwen2", "Qwen3", "Gemma2", "Gemma3")


def make_model(folder: Path, family: str = "Llama", dtype: torch.dtype = torch.float32, **save: Any) -> Path:
    """A random model of a family. Its weights are larger than a fresh model's, so that answers depend on every unit."""
    import transformers

    prefix = "Gemma3Text" if family == "Gemma3" else family
    config = getattr(transformers, f"{prefix}Config")(**_SIZES, tie_word_embeddings=family.startswith("Gemma"))
    torch.manual_seed(20261124)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 1.5 / parameter.shape[-1] ** 0.5)
    model.to(dtype).save_pretrained(folder, **save)
    return folder


def down(layer: int) -> str:
    """The name of a layer's down projection."""
    return f"model.layers.{layer}.mlp.down_proj.weight"


def up(layer: int) -> str:
    """The name of a layer's up projection."""
    return f"model.layers.{layer}.mlp.up_proj.weight"


def edit_by_hand(model: Path, folder: Path, gains: Mapping[tuple[int, int], float]) -> Path:
    """A copy of `model` in which neuron (layer, index) has each gain, multiplied into its down-projection column."""
    shutil.copytree(model, folder)
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        for (layer, index), gain in gains.items():
            if down(layer) in tensors:
                weights = tensors[down(layer)]
                weights[:, index] = (weights[:, index].float() * gain).to(weights.dtype)
        save_file(tensors, file, metadata={"format": "pt"})
    return folder


def patch_of(gains: Mapping[tuple[int, int], float], name: str = "test", **more: Any) -> dict[str, Any]:
    """The same gains as a patch, in plain data."""
    edits = [
        {"op": "negate", "neurons": {str(layer): [index]}}
        if gain == -1
        else {"op": "zero", "neurons": {str(layer): [index]}}
        if gain == 0
        else {"op": "scale", "factor": gain, "neurons": {str(layer): [index]}}
        for (layer, index), gain in gains.items()
    ]
    return {"version": 1, "name": name, "edits": edits, **more}
