# SPDX-License-Identifier: Apache-2.0
"""Directions: unit vectors of a model's hidden size, which an edit takes out of what neurons write.

A patch names one by a safetensors file that lies beside it, with the file's sha256, or gives its numbers, float32 and
little-endian, as base64. What counts is the numbers: a patch's digest doesn't depend on where they came from.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_HIDDEN = 65_536
"""Numbers of a direction. The widest model known has 18,432."""
MAX_NUMBERS = 1 << 19
"""Numbers of all directions of a patch together, one for each edit that has one: 64 of 8,192."""

UNIT_SLACK = 1e-2
"""How far from 1 a direction's length may be: eight bits of mantissa may leave it so. The edit divides by the length,
so that nothing of this error is left."""

FILE_NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,249}\.safetensors"
"""What a file of directions may be called: a name without a folder."""

_DIGITS_SHOWN = 8


@dataclass(frozen=True)
class Direction:
    """A unit vector.

    Attributes:
        numbers: float32, little-endian.
        file: the name of the file that it was read from; None where the patch gave the numbers.
        sha256: of that file.
        tensor: its name there, where the patch gave one.
    """

    numbers: bytes
    file: str | None = field(default=None, compare=False)
    sha256: str | None = field(default=None, compare=False)
    tensor: str | None = field(default=None, compare=False)

    @classmethod
    def of(cls, values: NDArray[Any]) -> Direction:
        """The direction of any vector that isn't zero, divided by its length."""
        wide = values.astype(np.float64)
        return cls((wide / np.linalg.norm(wide)).astype("<f4").tobytes())

    def __len__(self) -> int:
        return len(self.numbers) // 4

    @property
    def values(self) -> NDArray[np.float32]:
        """The numbers, ``[hidden]``."""
        return np.frombuffer(self.numbers, "<f4").astype(np.float32)

    @cached_property
    def digest(self) -> str:
        """sha256 of the numbers, in hex."""
        return hashlib.sha256(self.numbers).hexdigest()

    @property
    def inline(self) -> dict[str, str]:
        """The form for a patch that holds the numbers themselves."""
        return {"values": base64.b64encode(self.numbers).decode("ascii")}

    def __str__(self) -> str:
        return self.digest[:_DIGITS_SHOWN]


@dataclass(frozen=True)
class Projection:
    """The edit ``w - strength * u (u . w)`` of a column w, where u is the direction.

    Attributes:
        strength: 1 takes the direction out; 2 mirrors what the column writes along it.
    """

    direction: Direction
    strength: float


def is_file_name(word: str) -> bool:
    """True if a patch may call a file of directions so."""
    return re.fullmatch(FILE_NAME, word) is not None


def check_numbers(numbers: bytes) -> None:
    """Checks that these are a unit vector.

    Raises:
        ValueError: they aren't, with the reason in one line.
    """
    count = len(numbers) // 4
    if len(numbers) % 4 or not count:
        raise ValueError(f"{len(numbers)} bytes are no float32 numbers")
    if count > MAX_HIDDEN:
        raise ValueError(f"a direction of {count} numbers; at most {MAX_HIDDEN}")
    values = np.frombuffer(numbers, "<f4").astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("the direction holds a number that isn't finite")
    length = float(np.linalg.norm(values))
    if abs(length - 1) > UNIT_SLACK:
        raise ValueError(f"the direction has the length {length:.4g}, not 1; divide it by its length")
