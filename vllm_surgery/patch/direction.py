# SPDX-License-Identifier: Apache-2.0
"""Directions: unit vectors of a model's hidden size, which an edit takes out of what neurons write.

A patch names one by a safetensors file that lies beside it, with the file's sha256, or gives its numbers, float32 and
little-endian, as base64. What counts is the numbers: a patch's digest doesn't depend on where they came from.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import numpy as np
from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from vllm_surgery.patch.selection import refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from pydantic import SerializationInfo, ValidationInfo

    ReadDirection: TypeAlias = Callable[[str, str, str | None], bytes]
    """Numbers of the direction in a file, by the file's name, its sha256, and the tensor's name where one is given."""

READER = "read_direction"
"""Key of pydantic's validation context under which a `ReadDirection` stands, where files may be named."""
FILES = "name_files"
"""Key of pydantic's serialization context: true where a direction that came from a file is to be written as that."""

MAX_HIDDEN = 65_536
"""Numbers of a direction. The widest model known has 18,432."""
MAX_NUMBERS = 1 << 19
"""Numbers of all directions of a patch together, one for each edit that has one: 64 of 8,192."""

UNIT_SLACK = 1e-2
"""How far from 1 a direction's length may be: eight bits of mantissa may leave it so. The edit divides by the length,
so that nothing of this error is left."""

_FILE_NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,249}\.safetensors"
_SHA256 = r"[0-9a-f]{64}"
_MAX_TENSOR_NAME = 256
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
    return re.fullmatch(_FILE_NAME, word) is not None


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


def parse_direction(value: object, info: ValidationInfo) -> Direction:
    """Reads a direction as a patch gives it.

    Raises:
        PydanticCustomError: with the place below the direction in its context.
    """
    if isinstance(value, Direction):  # Read before: a patch that is copied or built in Python.
        return value
    if not isinstance(value, dict):
        raise refusal("", f"expected {{file, sha256}} or {{values}}, got {type(value).__name__}")
    for key in value:
        if key not in {"file", "sha256", "tensor", "values"}:
            raise refusal(str(key), "is not a key of this format")
    if "values" in value:
        return _of_values(value)
    return _of_file(value, (info.context or {}).get(READER))


def _of_values(value: dict[str, Any]) -> Direction:
    if others := sorted({"file", "sha256", "tensor"} & value.keys()):
        raise refusal(others[0], "stands beside `values`; give a file or the numbers, not both")
    text = value["values"]
    if not isinstance(text, str):
        raise refusal("values", f"expected base64 text, got {type(text).__name__}")
    try:
        numbers = base64.b64decode(text, validate=True)
        check_numbers(numbers)
    except binascii.Error as error:
        raise refusal("values", f"is not base64: {error}") from None
    except ValueError as error:
        raise refusal("values", str(error)) from None
    return Direction(numbers)


def _of_file(value: dict[str, Any], read: ReadDirection | None) -> Direction:
    for key in ("file", "sha256"):
        if key not in value:
            raise refusal(key, "is missing")
    file, sha256, tensor = value["file"], value["sha256"], value.get("tensor")
    if not (isinstance(file, str) and is_file_name(file)):
        raise refusal(
            "file", f"must be the name of a .safetensors file beside the patch, without a folder, got {file!r}"
        )
    if not (isinstance(sha256, str) and re.fullmatch(_SHA256, sha256)):
        raise refusal("sha256", f"must be 64 hexadecimal digits, got {sha256!r}")
    if tensor is not None and not (isinstance(tensor, str) and 0 < len(tensor) <= _MAX_TENSOR_NAME):
        raise refusal("tensor", f"must be a tensor's name, got {tensor!r}")
    if read is None:
        raise refusal("file", "only a patch that is a file itself can name one beside it; give the numbers as `values`")
    try:
        numbers = read(file, sha256, tensor)
        check_numbers(numbers)
    except ValueError as error:
        raise refusal("file", f"{file}: {error}") from None
    return Direction(numbers, file, sha256, tensor)


def write_direction(direction: Direction, info: SerializationInfo) -> dict[str, str]:
    """The form for a patch: the numbers, or where it is asked for the file that they came from."""
    if direction.file is None or not (info.context or {}).get(FILES):
        return direction.inline
    named = {"file": direction.file, "sha256": direction.sha256 or "", "tensor": direction.tensor}
    return {key: text for key, text in named.items() if text is not None}


_SCHEMA: dict[str, Any] = {
    "description": "a unit vector of the model's hidden size",
    "oneOf": [
        {
            "type": "object",
            "additionalProperties": False,
            "required": ["file", "sha256"],
            "properties": {
                "file": {
                    "type": "string",
                    "pattern": f"^{_FILE_NAME}$",
                    "description": "name of a safetensors file beside the patch, of one tensor",
                },
                "sha256": {"type": "string", "pattern": f"^{_SHA256}$", "description": "of that file"},
                "tensor": {
                    "type": "string",
                    "minLength": 1,
                    "maxLength": _MAX_TENSOR_NAME,
                    "description": "which tensor of the file, where it has several",
                },
            },
        },
        {
            "type": "object",
            "additionalProperties": False,
            "required": ["values"],
            "properties": {
                "values": {"type": "string", "minLength": 1, "description": "base64 of little-endian float32 numbers"}
            },
        },
    ],
}

DirectionField = Annotated[
    Direction, BeforeValidator(parse_direction), PlainSerializer(write_direction), WithJsonSchema(_SCHEMA)
]
