# SPDX-License-Identifier: Apache-2.0
"""Tensors in checkpoint coordinates, and sets of their number formats."""

from __future__ import annotations

from dataclasses import dataclass

_LONGEST_EMPTY = 1 << 20


@dataclass(frozen=True)
class TensorInfo:
    """A tensor in checkpoint coordinates: its name, safetensors' word for its number format, and its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]


# The number formats in which a weight is a number by itself. Others are packed, or have scales beside them.
FLOAT_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})


FP8_DTYPES = frozenset({"F8_E4M3", "F8_E5M2"})


UNPACKED_DTYPES = FLOAT_DTYPES | FP8_DTYPES | {"I8"}
"""The formats in which a tensor has the shape of its weight."""


def check_empty(name: str, shape: tuple[int, ...]) -> None:
    """Checks that a tensor without a number isn't long all the same: no byte of its file pays for work on its length.

    Raises:
        ValueError: it is.
    """
    if 0 in shape and max(shape) > _LONGEST_EMPTY:
        raise ValueError(f"{name} is empty and {max(shape)} long, which no tensor of a model is")
