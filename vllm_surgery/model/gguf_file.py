# SPDX-License-Identifier: Apache-2.0
"""Reading a GGUF file: its metadata, and where each tensor lies. Nothing of the weights is read.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

from vllm_surgery.errors import CheckpointError, UsageError
from vllm_surgery.model.tensor_info import check_empty
from vllm_surgery.regular_files import open_regular

if TYPE_CHECKING:
    from pathlib import Path

MAGIC = b"GGUF"
ENDING = ".gguf"

Value: TypeAlias = "int | float | bool | str | tuple[int | float | bool, ...] | None"
"""A metadata value; None for a list of texts, of which none is needed."""

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9
_VERSIONS = (2, 3)
_ALIGNMENT = "general.alignment"

# Bounds far above any file known: a tokenizer has 300,000 words, a model of experts in tensors of their own 100,000.
_MOST_TENSORS = 1 << 20
_MOST_KEYS = 1 << 16
_LONGEST_TEXT = 64 << 20
_LONGEST_LIST = 1 << 26
_LONGEST_KEPT = 1 << 12  # Numbers of a list that are kept: one a layer is what is looked for.
_MOST_AXES = 4


@dataclass(frozen=True)
class BlockType:
    """How GGUF stores numbers: blocks of so many, in so many bytes.

    Attributes:
        scales: where in a block the sixteen-bit floats are by which all of its numbers are multiplied; empty where the
            numbers stand by themselves; None where they have no such scales.
    """

    name: str
    numbers: int
    size: int
    scales: tuple[int, ...] | None = None


BLOCK_TYPES = {
    0: BlockType("F32", 1, 4, ()),
    1: BlockType("F16", 1, 2, ()),
    2: BlockType("Q4_0", 32, 18, (0,)),
    3: BlockType("Q4_1", 32, 20, (0, 2)),
    6: BlockType("Q5_0", 32, 22, (0,)),
    7: BlockType("Q5_1", 32, 24, (0, 2)),
    8: BlockType("Q8_0", 32, 34, (0,)),
    9: BlockType("Q8_1", 32, 36),
    10: BlockType("Q2_K", 256, 84, (80, 82)),
    11: BlockType("Q3_K", 256, 110, (108,)),
    12: BlockType("Q4_K", 256, 144, (0, 2)),
    13: BlockType("Q5_K", 256, 176, (0, 2)),
    14: BlockType("Q6_K", 256, 210, (208,)),
    15: BlockType("Q8_K", 256, 292),
    16: BlockType("IQ2_XXS", 256, 66, (0,)),
    17: BlockType("IQ2_XS", 256, 74, (0,)),
    18: BlockType("IQ3_XXS", 256, 98, (0,)),
    19: BlockType("IQ1_S", 256, 50, (0,)),
    20: BlockType("IQ4_NL", 32, 18, (0,)),
    21: BlockType("IQ3_S", 256, 110, (0,)),
    22: BlockType("IQ2_S", 256, 82, (0,)),
    23: BlockType("IQ4_XS", 256, 136, (0,)),
    24: BlockType("I8", 1, 1),
    25: BlockType("I16", 1, 2),
    26: BlockType("I32", 1, 4),
    27: BlockType("I64", 1, 8),
    28: BlockType("F64", 1, 8, ()),
    29: BlockType("IQ1_M", 256, 56),
    30: BlockType("BF16", 1, 2, ()),
    34: BlockType("TQ1_0", 256, 54, (52,)),
    35: BlockType("TQ2_0", 256, 66, (64,)),
    39: BlockType("MXFP4", 32, 17),
    40: BlockType("NVFP4", 64, 36),
}
"""By ggml's number of each type. IQ1_M cuts its scale into pieces, MXFP4's and NVFP4's have no sign."""


@dataclass(frozen=True)
class GgufTensor:
    """A tensor and where its bytes lie.

    Attributes:
        shape: as in a checkpoint, outputs first: GGUF counts axes the other way round.
        start: of its data, from the start of the file, in bytes.
    """

    name: str
    type: BlockType
    shape: tuple[int, ...]
    start: int

    @property
    def row_size(self) -> int:
        """Bytes of one row along the last axis."""
        return self.shape[-1] // self.type.numbers * self.type.size

    @property
    def size(self) -> int:
        """Bytes of all."""
        return math.prod(self.shape[:-1]) * self.row_size


class GgufFile:
    """A GGUF file on disk.

    Raises:
        UsageError: there is no such file.
        CheckpointError: it isn't one, with the reason.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, Value] = {}
        self.tensors: dict[str, GgufTensor] = {}
        try:
            with open_regular(path) as file:
                self._read(_Reader(file, path.stat().st_size))
        except FileNotFoundError:
            raise UsageError(f"{path}: no such file") from None
        except (OSError, ValueError, struct.error) as error:
            raise CheckpointError(f"{path}: is no GGUF file that is understood: {error}") from None

    def _read(self, reader: _Reader) -> None:
        if reader.take(4) != MAGIC:
            raise ValueError("it doesn't begin as one")
        version = reader.number("I")
        if version not in _VERSIONS:
            raise ValueError(f"its version is {version}; {' and '.join(map(str, _VERSIONS))} are read")
        tensors = _bounded(reader.number("Q"), _MOST_TENSORS, "tensors")
        for _ in range(_bounded(reader.number("Q"), _MOST_KEYS, "keys")):
            key = reader.text()
            self.metadata[key] = reader.value(reader.number("I"))
        found = [reader.tensor() for _ in range(tensors)]
        alignment = self.metadata.get(_ALIGNMENT, 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"its alignment is {alignment}")
        first = -(-reader.place // alignment) * alignment
        for tensor in found:
            placed = GgufTensor(tensor.name, tensor.type, tensor.shape, first + tensor.start)
            if placed.start + placed.size > reader.size:
                raise ValueError(f"it ends before {tensor.name}")
            if tensor.name in self.tensors:
                raise ValueError(f"{tensor.name} stands twice in it")
            self.tensors[tensor.name] = placed


def _bounded(number: int, most: int, what: str) -> int:
    if number > most:
        raise ValueError(f"it claims {number} {what}")
    return number


class _Reader:
    """Reads numbers and texts one after another, never past the end of the file."""

    _CHUNK = 1 << 20

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self.size, self.place = file, size, 0
        self._held, self._at = b"", 0

    def take(self, count: int) -> bytes:
        if self.place + count > self.size:
            raise ValueError("it ends in its header")
        while len(self._held) - self._at < count:
            more = self._file.read(max(self._CHUNK, count))
            if not more:
                raise ValueError("it ends in its header")
            self._held, self._at = self._held[self._at :] + more, 0
        taken = self._held[self._at : self._at + count]
        self._at += count
        self.place += count
        return taken

    def number(self, code: str) -> int:
        return int(struct.unpack(f"<{code}", self.take(struct.calcsize(code)))[0])

    def text(self) -> str:
        return self.take(_bounded(self.number("Q"), _LONGEST_TEXT, "bytes of text")).decode("utf-8", "replace")

    def value(self, kind: int) -> Value:
        if kind == _TEXT:
            return self.text()
        if kind == _LIST:
            return self._list()
        if kind not in _SCALARS:
            raise ValueError(f"a value of the unknown kind {kind}")
        code = _SCALARS[kind]
        value: int | float | bool = struct.unpack(f"<{code}", self.take(struct.calcsize(code)))[0]
        return value

    def _list(self) -> Value:
        kind, count = self.number("I"), _bounded(self.number("Q"), _LONGEST_LIST, "items of a list")
        if kind == _TEXT:
            for _ in range(count):
                self.take(_bounded(self.number("Q"), _LONGEST_TEXT, "bytes of text"))
            return None
        if kind not in _SCALARS:
            raise ValueError(f"a list of the unknown kind {kind}")
        content = self.take(count * struct.calcsize(_SCALARS[kind]))
        return struct.unpack(f"<{count}{_SCALARS[kind]}", content) if count <= _LONGEST_KEPT else None

    def tensor(self) -> GgufTensor:
        name = self.text()
        axes = _bounded(self.number("I"), _MOST_AXES, "axes")
        shape = tuple(self.number("Q") for _ in range(axes))[::-1] or (1,)
        check_empty(name, shape)
        kind, start = self.number("I"), self.number("Q")
        if kind not in BLOCK_TYPES:
            raise ValueError(f"{name} is of the unknown type {kind}")
        if shape[-1] % BLOCK_TYPES[kind].numbers:
            raise ValueError(f"{name} has rows of {shape[-1]} numbers, which {BLOCK_TYPES[kind].name} can't store")
        return GgufTensor(name, BLOCK_TYPES[kind], shape, start)
