# SPDX-License-Identifier: Apache-2.0
"""Whether two tensors on disk are equal byte for byte, read in two small buffers and never decoded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_surgery.errors import CheckpointError

if TYPE_CHECKING:
    from io import FileIO

    from vllm_surgery.checkpoint import StoredTensor

_CHUNK_BYTES = 1 << 20  # Of each file at a time: both chunks fit a processor's cache.


def same_bytes(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors of the same size in bytes are equal.

    Raises:
        CheckpointError: a file ends before its tensor does.
    """
    left, right = bytearray(_CHUNK_BYTES), bytearray(_CHUNK_BYTES)
    with one.file.open("rb", buffering=0) as left_file, other.file.open("rb", buffering=0) as right_file:
        left_file.seek(one.start)
        right_file.seek(other.start)
        for start in range(0, one.size, _CHUNK_BYTES):
            length = min(_CHUNK_BYTES, one.size - start)
            _fill(left_file, left, length, one)
            _fill(right_file, right, length, other)
            if left != right:  # What a last, shorter chunk leaves behind its end is equal, or was found to differ.
                return False
    return True


def _fill(file: FileIO, buffer: bytearray, length: int, stored: StoredTensor) -> None:
    filled = 0
    while filled < length:
        count = file.readinto(memoryview(buffer)[filled:length])
        if not count:
            raise CheckpointError(f"{stored.file}: ends before {stored.info.name}")
        filled += count
