# SPDX-License-Identifier: Apache-2.0
"""Small GGUF files with random blocks, written by the gguf package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

LAYERS, HIDDEN, WIDTH, EXPERTS = 2, 256, 512, 4
FLOATS = ("F32", "F16", "BF16")
BLOCKS = (
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0"),
)
WITHOUT_SCALE = ("IQ1_M", "MXFP4")


def blocks(word: str, shape: tuple[int, ...], seed: int = 0) -> NDArray[np.uint8]:
    """Random bytes of a type, whose scales are ordinary numbers: ``[..., bytes of a row]``."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import quantize

    source, kind = np.random.default_rng(seed), GGMLQuantizationType[word]
    if word in FLOATS:
        return np.asarray(quantize(source.standard_normal(shape).astype(np.float32), kind)).view(np.uint8)
    numbers, size = GGML_QUANT_SIZES[kind]
    content = source.integers(0, 256, (*shape[:-1], shape[-1] // numbers, size), dtype=np.uint8)
    for at in _scales(word):
        scales = (source.standard_normal(content.shape[:-1]) * 0.1 + 0.5).astype("<f2")
        content[..., at : at + 2] = scales[..., None].view(np.uint8)
    return content.reshape(*shape[:-1], -1)


def _scales(word: str) -> tuple[int, ...]:
    """Where llama.cpp's own structures (ggml-common.h) have the scales of a block."""
    last = {"Q3_K": (108,), "Q6_K": (208,), "Q2_K": (80, 82), "TQ1_0": (52,), "TQ2_0": (64,)}
    two = dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2))
    return () if word in WITHOUT_SCALE else {**last, **two}.get(word, (0,))


def write_gguf(
    file: Path, word: str = "Q4_K", *, kind: str = "neurons", architecture: str = "llama", **more: Any
) -> Path:
    """A model of gated MLPs (``neurons``, ``fused`` with gate and up in one, ``biased``) or of ``experts`` with a shared one."""
    from gguf import GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(file, architecture)
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(WIDTH)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "c"])
    if kind == "experts":
        writer.add_expert_count(EXPERTS)
    for key, value in more.items():
        writer.add_uint32(key.replace("__", "."), value)
    for number, (name, shape) in enumerate(_tensors(kind)):
        own = "F32" if len(shape) == 1 else word
        content = blocks(own, shape, number)
        if own in {"F32", "F16"}:
            writer.add_tensor(name, content.view(np.float32 if own == "F32" else np.float16))
        else:
            writer.add_tensor(name, content, raw_dtype=GGMLQuantizationType[own])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _tensors(kind: str) -> list[tuple[str, tuple[int, ...]]]:
    found: list[tuple[str, tuple[int, ...]]] = [("output_norm.weight", (HIDDEN,))]
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        up, down = (WIDTH, HIDDEN), (HIDDEN, WIDTH)
        if kind == "experts":
            found += [
                (f"{block}ffn_gate_inp.weight", (EXPERTS, HIDDEN)),
                *((f"{block}ffn_{part}_exps.weight", (EXPERTS, *up)) for part in ("gate", "up")),
                (f"{block}ffn_down_exps.weight", (EXPERTS, *down)),
                *((f"{block}ffn_{part}_shexp.weight", up) for part in ("gate", "up")),
                (f"{block}ffn_down_shexp.weight", down),
            ]
            continue
        gate = [] if kind == "fused" else [(f"{block}ffn_gate.weight", up)]
        found += [*gate, (f"{block}ffn_up.weight", (2 * WIDTH, HIDDEN) if kind == "fused" else up)]
        found += [(f"{block}ffn_down.weight", down)]
        found += [(f"{block}ffn_up.bias", (WIDTH,))] if kind == "biased" else []
    return found


def dequantised(file: Path) -> dict[str, NDArray[np.float32]]:
    """What every tensor of a file stands for, by the gguf package."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    return {tensor.name: np.asarray(dequantize(tensor.data, tensor.tensor_type)) for tensor in GGUFReader(file).tensors}
