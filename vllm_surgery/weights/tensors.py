# SPDX-License-Identifier: Apache-2.0
"""Tensors of a checkpoint as torch sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from vllm_surgery.errors import CheckpointError

if TYPE_CHECKING:
    from vllm_surgery.model.checkpoint import StoredTensor

_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_WORDS = {dtype: word for word, dtype in _DTYPES.items()}
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def dtype_word(dtype: torch.dtype) -> str:
    """The word that safetensors has for `dtype`; torch's own where it has none."""
    return _WORDS.get(dtype, str(dtype))


def torch_dtype(word: str) -> torch.dtype:
    """The torch dtype of a number format of safetensors."""
    return _DTYPES[word]


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The numbers of `tensor` as integers of the same size, for work on their bits."""
    return tensor.view(_BITS[tensor.element_size()])


def of_bytes(content: memoryview, dtype: str) -> torch.Tensor:
    """A copy of some numbers, as one row.

    Args:
        content: their bytes.
        dtype: their number format, as safetensors calls it.
    """
    return torch.from_numpy(np.frombuffer(content, np.uint8).copy()).view(_DTYPES[dtype])


def read_tensor(stored: StoredTensor) -> torch.Tensor:
    """A tensor from its file, into memory of its own.

    Raises:
        CheckpointError: the file ends before it does, or torch has no such number format.
    """
    if stored.info.dtype not in _DTYPES:
        raise CheckpointError(f"{stored.file}: {stored.info.name} is stored as {stored.info.dtype}, which torch lacks")
    content = np.fromfile(stored.file, np.uint8, stored.size, offset=stored.start)
    if content.size != stored.size:
        raise CheckpointError(f"{stored.file}: ends before {stored.info.name}")
    return torch.from_numpy(content).view(_DTYPES[stored.info.dtype]).view(stored.info.shape)
