# SPDX-License-Identifier: Apache-2.0
"""Reading a Hugging Face model folder: its config, its tensors' names and shapes, and raw slices of them.

Works on the safetensors headers alone, without torch: a slice of a bf16 tensor in a 60 GB checkpoint costs one seek.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from vllm_surgery.errors import CheckpointError, UsageError
from vllm_surgery.model.anatomy import Anatomy
from vllm_surgery.model.config import CONFIG_FILE, ModelFacts, _hub_identity, _whole_number
from vllm_surgery.model.hub import local_path
from vllm_surgery.model.tensor_info import TensorInfo, check_empty
from vllm_surgery.regular_files import IS_LFS_POINTER, LFS_POINTER, open_regular, read_regular

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
_MAX_HEADER_BYTES = 100_000_000  # The limit of the safetensors library itself.
_MAX_JSON_BYTES = 64 << 20  # The largest index known has 13 MB.

BYTES_PER_NUMBER = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """A tensor and where its bytes lie.

    Attributes:
        info: what it is.
        file: the safetensors file.
        start: of its data, from the start of the file, in bytes.
        size: of its data, in bytes.
    """

    info: TensorInfo
    file: Path
    start: int
    size: int


class TensorSlices:
    """Reader of one tensor's slices. Its file is mapped at the first and stays so until the reader goes.

    Args:
        stored: the tensor.
    """

    def __init__(self, stored: StoredTensor) -> None:
        self._stored = stored

    @cached_property
    def _bytes(self) -> NDArray[np.uint8]:
        return np.memmap(self._stored.file, np.uint8, "r", self._stored.start, (self._stored.size,))

    def __call__(self, axis: int | None, index: int) -> memoryview:
        """One slice, as the bytes that store it, in order; not copied where they lie together.

        Args:
            axis: that `index` counts along: of a matrix 0 for rows, 1 for columns. None for the whole tensor, which is
                slice 0.
            index: of the slice.

        Raises:
            CheckpointError: there is no such slice, or its numbers don't fill whole bytes.
        """
        info = self._stored.info
        size, shape = BYTES_PER_NUMBER.get(info.dtype), info.shape
        shape, axis = ((1, *shape), 0) if axis is None else (shape, axis)
        if size is None or axis >= len(shape) or not 0 <= index < shape[axis]:
            word = {(2, 0): "row", (2, 1): "column"}.get((len(shape), axis), "slice")
            raise CheckpointError(f"{info.name}: has no {word} {index}: it is {info.dtype} {list(info.shape)}")
        chosen = np.ascontiguousarray(self._bytes.reshape((*shape, size))[(slice(None),) * axis + (index,)])
        return chosen.reshape(-1).data.toreadonly()


class ModelFolder:
    """A Hugging Face model folder on disk.

    Args:
        path: of the folder; or of a model's outer folder in the Hub's cache, or the model's name there, ``ORG/NAME`` or
            ``ORG/NAME@REVISION``. Nothing is downloaded.

    Raises:
        UsageError: there is no such folder.
        CheckpointError: it isn't one, with the reason.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = local_path(path)
        if not _says_yes(self.path.is_dir):
            raise UsageError(f"{path}: no such model folder")
        self.config = read_json(self.path / CONFIG_FILE)

    @property
    def facts(self) -> ModelFacts:
        """The config's facts; base and revision from the Hugging Face cache's own path, where it lies in one.

        Raises:
            CheckpointError: the config says what no model can have.
        """
        base, revision = _hub_identity(self.path)
        try:
            return ModelFacts.from_config(self.config, base, revision)
        except CheckpointError as error:
            raise CheckpointError(f"{self.path / CONFIG_FILE}: {error}") from None

    @property
    def tensors(self) -> list[TensorInfo]:
        """Every tensor of the checkpoint, in the files' order."""
        return [stored.info for stored in self.stored.values()]

    @cached_property
    def anatomy(self) -> Anatomy:
        """The model's blocks and routers.

        Raises:
            CheckpointError: the files can't be read, or are not those of a model that is understood.
        """
        return Anatomy.of(self.tensors, self.facts.num_hidden_layers)

    def slices_of(self, name: str) -> TensorSlices:
        """Reader of a tensor's slices, for those who want many of them.

        Raises:
            CheckpointError: there is no such tensor.
        """
        stored = self.stored.get(name)
        if stored is None:
            raise CheckpointError(f"{self.path}: has no tensor {name}")
        return TensorSlices(stored)

    def read_slice(self, name: str, axis: int | None, index: int) -> memoryview:
        """One slice of a tensor: see `TensorSlices`.

        Raises:
            CheckpointError: there is no such tensor or slice, or its numbers don't fill whole bytes.
        """
        return self.slices_of(name)(axis, index)

    @cached_property
    def stored(self) -> dict[str, StoredTensor]:
        """Every tensor by its name, with its place on disk.

        Raises:
            CheckpointError: a file is missing or can't be read, or a tensor is in two of them.
        """
        stored: dict[str, StoredTensor] = {}
        for file in self.files:
            for item in _read_header(file):
                name = item.info.name
                if name in stored:
                    raise CheckpointError(
                        f"{self.path}: {name} is both in {stored[name].file.name} and in {file.name}, of which engines "
                        "load one or the other; remove one of the files"
                    )
                stored[name] = item
        return stored

    @cached_property
    def files(self) -> list[Path]:
        """The safetensors files that hold the tensors.

        Raises:
            CheckpointError: there are none, the index names one that is missing, or engines would load different
                ones.
        """
        index = self.path / INDEX_FILE
        if index.is_file():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict):
                raise CheckpointError(f"{index}: has no weight_map")
            names = sorted({str(name) for name in weight_map.values()})
            strange = [name for name in names if Path(name).name != name]
            if strange:
                raise CheckpointError(f"{index}: {strange[0]!r} is not a file name in this folder")
            if SINGLE_FILE not in names and _says_yes((self.path / SINGLE_FILE).is_file):
                raise CheckpointError(
                    f"{self.path}: {SINGLE_FILE} lies beside an index that doesn't name it: transformers loads the "
                    "file, vLLM what the index names; remove one of them"
                )
            missing = [name for name in names if not _says_yes((self.path / name).is_file)]
            if missing:
                raise CheckpointError(f"{self.path}: {missing[0]} is named by the index but missing")
            return [self.path / name for name in names]
        files = sorted(self.path.glob("*.safetensors"))
        # Mistral's folders hold the same weights twice, as `consolidated*` under other names; vLLM skips them too.
        files = [file for file in files if not file.name.startswith("consolidated")] or files
        if not files:
            bins = "; of .bin files only a server's start can read weights" if [*self.path.glob("*.bin")] else ""
            raise CheckpointError(f"{self.path}: has no safetensors files{bins}")
        return files


def _says_yes(question: Callable[[], bool]) -> bool:
    """A file-system question about a path; no where it can't be answered, as for a name that is too long."""
    try:
        return question()
    except OSError:
        return False


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in one of a model folder's files.

    Raises:
        CheckpointError: there is no such file, or it holds something else.
    """
    try:
        content = read_regular(path, _MAX_JSON_BYTES)
        if len(content) > _MAX_JSON_BYTES:
            raise CheckpointError(f"{path}: is longer than {_MAX_JSON_BYTES} bytes, which no such file is")
        if content.startswith(LFS_POINTER):
            raise ValueError(IS_LFS_POINTER)
        data = json.loads(content)
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent}: has no {path.name}, so it is no Hugging Face model folder") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: can't be read as JSON: {error}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: is not a JSON object")
    return data


def read_header_bytes(file: Path) -> bytes:
    """The JSON header of a safetensors file, as it stands there.

    Raises:
        CheckpointError: the file has none.
    """
    try:
        return _header_bytes(file)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: is no safetensors file: {error}") from None


def tensor_names(file: Path) -> frozenset[str]:
    """Names of the tensors in a safetensors file.

    Raises:
        CheckpointError: it is none.
    """
    return frozenset(item.info.name for item in _read_header(file))


def _header_bytes(file: Path) -> bytes:
    with open_regular(file) as stream:
        start = stream.read(8)
        if start == LFS_POINTER[:8]:
            raise ValueError(IS_LFS_POINTER)
        length = int.from_bytes(start, "little")
        if not 0 < length <= _MAX_HEADER_BYTES:
            raise ValueError(f"its header claims {length} bytes")
        if 8 + length > file.stat().st_size:
            raise ValueError("the file ends in its header")
        return _read_whole(stream, length)


def _read_whole(stream: BinaryIO, length: int) -> bytes:
    content = bytearray()
    while chunk := stream.read(length - len(content)):
        content += chunk
    return bytes(content)


def _read_header(file: Path) -> list[StoredTensor]:
    try:
        content = _header_bytes(file)
        header = json.loads(content, object_pairs_hook=_unique)
        start, size = 8 + len(content), file.stat().st_size
        found = [_stored(file, name, entry, start, size) for name, entry in header.items() if name != "__metadata__"]
        _check_apart(found)
        return found
    except KeyError as error:
        raise CheckpointError(f"{file}: is no safetensors file: its header has an entry without {error}") from None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file}: is no safetensors file: {error}") from None


def _unique(members: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, entry in members:
        if name in found:
            raise ValueError(f"{name} stands twice in its header")
        found[name] = entry
    return found


def _check_apart(found: list[StoredTensor]) -> None:
    """Refuses tensors that share bytes: an edit of one would be an edit of the other."""
    ordered = sorted((item for item in found if item.size), key=lambda item: item.start)
    for one, other in pairwise(ordered):
        if other.start < one.start + one.size:
            raise ValueError(f"{one.info.name} and {other.info.name} share bytes")


def _stored(file: Path, name: str, entry: dict[str, Any], data_start: int, size: int) -> StoredTensor:
    first, last = _sizes(name, entry["data_offsets"])
    info = TensorInfo(name, str(entry["dtype"]), _sizes(name, entry["shape"]))
    if data_start + last > size:
        raise ValueError(f"the file ends before {name}")
    if first > last:
        raise ValueError(f"{name} ends before it starts")
    if info.dtype in BYTES_PER_NUMBER and math.prod(info.shape) * BYTES_PER_NUMBER[info.dtype] != last - first:
        raise ValueError(f"{name} has {last - first} bytes, which is not its shape's size")
    if math.prod(info.shape) > 8 * (last - first):  # Of formats whose numbers' size isn't known, a bit each at least.
        raise ValueError(f"{name} has {last - first} bytes, fewer bits than its shape has numbers")
    check_empty(name, info.shape)
    return StoredTensor(info, file, data_start + first, last - first)


def _sizes(name: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or any(_whole_number(number) is None or number < 0 for number in value):
        raise ValueError(f"{name} has {value!r} where sizes stand")
    return tuple(value)
