# SPDX-License-Identifier: Apache-2.0
"""Safetensors files of directions, which lie beside the patches that name them."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
from safetensors.numpy import save

from vllm_surgery.patch.direction import MAX_HIDDEN, Direction
from vllm_surgery.regular_files import read_regular

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_FILE_BYTES = 16 << 20
"""Of all files of directions that one patch names. A library of 64 directions of 8,192 numbers has 2 MiB."""

NAME = "direction_"
"""Before the number of each direction in a file that this project writes."""

_NUMPY = {"F32": "<f4", "F16": "<f2"}


class DirectionFiles:
    """Reader of the files beside one patch. Each is read once.

    Args:
        folder: the patch's own. What is read lies in it; symbolic links may lead about inside.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[str, tuple[str, dict[str, tuple[str, list[int], bytes]]]] = {}
        self._numbers: dict[tuple[str, str], bytes] = {}
        self._left = MAX_FILE_BYTES

    def __call__(self, file: str, sha256: str, tensor: str | None) -> bytes:
        """The numbers of a direction: float32, little-endian.

        Args:
            file: a name without a folder.
            sha256: of the file.
            tensor: which; None for the file's only one.

        Raises:
            ValueError: it can't be read, is another file than the patch was written with, or holds no such direction.
        """
        if file not in self._read:
            self._read[file] = self._open(file)
        actual, tensors = self._read[file]
        if actual != sha256:
            raise ValueError(f"is another file than the patch was written with: its sha256 is {actual}")
        name = _only(tensors) if tensor is None else tensor
        if name not in tensors:
            raise ValueError(f"has no tensor {name!r}")
        if (file, name) not in self._numbers:
            self._numbers[file, name] = _numbers(name, *tensors[name])
        return self._numbers[file, name]

    def _open(self, file: str) -> tuple[str, dict[str, tuple[str, list[int], bytes]]]:
        try:
            folder = self._folder.resolve(strict=True)
            path = (folder / file).resolve(strict=True)
            if not path.is_relative_to(folder):
                raise ValueError("is a link that leads out of its folder")
            content = read_regular(path, self._left, follow=False)
        except (OSError, RuntimeError) as error:  # A circle of links is the latter before Python 3.13.
            raise ValueError(getattr(error, "strerror", None) or "is a circle of links") from None
        if len(content) > self._left:
            raise ValueError(f"a patch's directions may have {MAX_FILE_BYTES} bytes of files in all, and it has more")
        self._left -= len(content)
        try:
            found: Any = safetensors.deserialize(content)  # type: ignore[no-untyped-call]
        except Exception as error:  # The library raises what it likes.
            raise ValueError(f"is no safetensors file: {error}") from None
        tensors = {name: (entry["dtype"], list(entry["shape"]), bytes(entry["data"])) for name, entry in found}
        return hashlib.sha256(content).hexdigest(), tensors


def _only(tensors: Mapping[str, object]) -> str:
    if len(tensors) != 1:
        some = ", ".join(sorted(tensors)[:4])
        raise ValueError(f"holds {len(tensors)} tensors ({some}); say which by `tensor`")
    return next(iter(tensors))


def _numbers(name: str, dtype: str, shape: list[int], data: bytes) -> bytes:
    longer = [size for size in shape if size != 1]
    if len(longer) > 1 or not shape:
        raise ValueError(f"{name} has the shape {shape}, and a direction is one row of numbers")
    if len(data) > 4 * MAX_HIDDEN:
        raise ValueError(f"{name} has the shape {shape}; a direction has at most {MAX_HIDDEN} numbers")
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).astype("<u4").tobytes()
    if dtype not in _NUMPY:
        raise ValueError(f"{name} is stored as {dtype}; save it as F32, F16 or BF16")
    return np.frombuffer(data, _NUMPY[dtype]).astype("<f4").tobytes()


def direction_file(directions: Mapping[str, Direction], file: str) -> tuple[bytes, dict[str, Direction]]:
    """A safetensors file of directions.

    Args:
        directions: by the names that they are to have in it.
        file: its name.

    Returns:
        Its content, and the directions as a patch beside it names them.
    """
    content = save({name: direction.values for name, direction in directions.items()})
    sha256 = hashlib.sha256(content).hexdigest()
    alone = len(directions) == 1
    named = {
        name: Direction(direction.numbers, file, sha256, None if alone else name)
        for name, direction in directions.items()
    }
    return content, named


def holds_directions(path: Path) -> bool:
    """True for a file that holds nothing but directions as this project calls them, so that it may be written anew."""
    try:
        content = read_regular(path, MAX_FILE_BYTES)
        found: Any = safetensors.deserialize(content)  # type: ignore[no-untyped-call]
    except Exception:  # The library raises what it likes.
        return False
    return len(content) <= MAX_FILE_BYTES and all(name.startswith(NAME) for name, _ in found)


def beside(path: str | Path) -> DirectionFiles:
    """Reader of the files beside a patch file."""
    return DirectionFiles(Path(path).absolute().parent)


def marks_beside(path: Path) -> bytes:
    """What tells the safetensors files beside a patch file from others that come in their place."""
    marks = []
    for file in sorted(path.absolute().parent.glob("*.safetensors")):
        with suppress(OSError):
            status = file.stat()
            marks.append((file.name, status.st_ino, status.st_size, status.st_mtime_ns))
    return repr(marks).encode()
