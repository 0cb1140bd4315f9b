# SPDX-License-Identifier: Apache-2.0
"""Directions as a patch file gives them: by a file beside it, or by their numbers."""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from vllm_surgery.patch.direction import FILE_NAME, Direction, check_numbers, is_file_name
from vllm_surgery.patch.selection import refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import SerializationInfo, ValidationInfo

    ReadDirection: TypeAlias = Callable[[str, str, str | None], bytes]
    """Numbers of the direction in a file, by the file's name, its sha256, and the tensor's name where one is given."""

READER = "read_direction"
"""Key of pydantic's validation context under which a `ReadDirection` stands, where files may be named."""
FILES = "name_files"
"""Key of pydantic's serialization context: true where a direction that came from a file is to be written as that."""

_SHA256 = r"[0-9a-f]{64}"
_MAX_TENSOR_NAME = 256


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
                    "pattern": f"^{FILE_NAME}$",
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
