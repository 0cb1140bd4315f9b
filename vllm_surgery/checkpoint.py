# SPDX-License-Identifier: Apache-2.0
"""Reading a Hugging Face model folder: its config, its tensors' names and shapes, and raw slices of them.

Works on the safetensors headers alone, without torch: a slice of a bf16 tensor in a 60 GB checkpoint costs one seek.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vllm_surgery.anatomy import Anatomy, TensorInfo
from vllm_surgery.errors import CheckpointError, UsageError
from vllm_surgery.formats.scheme import Scheme

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

CONFIG_FILE = "config.json"
INDEX_FILE = "model.safetensors.index.json"
_MAX_HEADER_BYTES = 100_000_000  # The limit of the safetensors library itself.

# What configs call the number of routed experts a layer.
_EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
# What they call the number of them that a token goes to.
_CHOSEN_KEYS = ("num_experts_per_tok", "top_k_experts", "moe_top_k", "moe_k", "experts_per_token")

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


@dataclass(frozen=True)
class ModelFacts:
    """What a model's config says of it. None where it doesn't say.

    Attributes:
        experts_per_token: how many routed experts a layer's router chooses.
        expert_groups: how many groups of experts it compares first.
        groups_per_token: how many of those it chooses.
        sparse_layers: where a neuron's gate is compared with the layer's other gates (Gemma 3n), so that a change of
            one gate changes other neurons too.
        scheme: how a quantised checkpoint stores its weights.
        base: the name on the Hugging Face Hub, where it is known.
        revision: the commit there, where it is known.
    """

    architectures: tuple[str, ...] = ()
    num_hidden_layers: int | None = None
    hidden_size: int | None = None
    num_experts: int | None = None
    experts_per_token: int | None = None
    expert_groups: int | None = None
    groups_per_token: int | None = None
    sparse_layers: frozenset[int] = frozenset()
    scheme: Scheme | None = None
    base: str | None = None
    revision: str | None = None

    @property
    def quantization(self) -> str | None:
        """`quant_method` of a quantised checkpoint."""
        return None if self.scheme is None else self.scheme.method

    @classmethod
    def from_config(cls, config: dict[str, Any], base: str | None = None, revision: str | None = None) -> ModelFacts:
        """Reads `config.json`; for a multimodal model the text model's part of it."""
        text = config.get("text_config")
        text = text if isinstance(text, dict) else config
        architectures = config.get("architectures")
        return cls(
            architectures=tuple(str(item) for item in architectures) if isinstance(architectures, list) else (),
            num_hidden_layers=_whole_number(text.get("num_hidden_layers")),
            hidden_size=_whole_number(text.get("hidden_size")),
            num_experts=_first_number(text, _EXPERT_KEYS),
            experts_per_token=_first_number(text, _CHOSEN_KEYS),
            expert_groups=_whole_number(text.get("n_group")),
            groups_per_token=_whole_number(text.get("topk_group")),
            sparse_layers=_sparse_layers(text.get("activation_sparsity_pattern")),
            scheme=Scheme.of(config),
            base=base,
            revision=revision,
        )


class ModelFolder:
    """A Hugging Face model folder on disk.

    Raises:
        UsageError: there is no such folder.
        CheckpointError: it isn't one, with the reason.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not _says_yes(self.path.is_dir):
            raise UsageError(f"{path}: no such model folder")
        self.config = read_json(self.path / CONFIG_FILE)

    @property
    def facts(self) -> ModelFacts:
        """The config's facts; base and revision from the Hugging Face cache's own path, where it lies in one."""
        base, revision = _hub_identity(self.path)
        return ModelFacts.from_config(self.config, base, revision)

    @property
    def tensors(self) -> list[TensorInfo]:
        """Every tensor of the checkpoint, in the files' order."""
        return [stored.info for stored in self.stored.values()]

    @cached_property
    def anatomy(self) -> Anatomy:
        """What the model is made of.

        Raises:
            CheckpointError: the files can't be read, or are not those of a model that is understood.
        """
        return Anatomy.of(self.tensors, self.facts.num_hidden_layers)

    def read_slice(self, name: str, axis: int | None, index: int) -> memoryview:
        """One slice of a tensor, as the bytes that store it, in order; not copied where they lie together.

        Args:
            name: of the tensor.
            axis: that `index` counts along: of a matrix 0 for rows, 1 for columns. None for the whole tensor, which is
                slice 0.
            index: of the slice.

        Raises:
            CheckpointError: there is no such tensor or slice, or its numbers don't fill whole bytes.
        """
        stored = self.stored.get(name)
        if stored is None:
            raise CheckpointError(f"{self.path}: has no tensor {name}")
        size, shape = BYTES_PER_NUMBER.get(stored.info.dtype), stored.info.shape
        shape, axis = ((1, *shape), 0) if axis is None else (shape, axis)
        if size is None or axis >= len(shape) or not 0 <= index < shape[axis]:
            word = {(2, 0): "row", (2, 1): "column"}.get((len(shape), axis), "slice")
            raise CheckpointError(f"{name}: has no {word} {index}: it is {stored.info.dtype} {list(stored.info.shape)}")
        table = np.memmap(stored.file, np.uint8, "r", stored.start, (*shape, size))
        chosen = np.ascontiguousarray(table[(slice(None),) * axis + (index,)])
        return chosen.reshape(-1).data.toreadonly()

    @cached_property
    def stored(self) -> dict[str, StoredTensor]:
        """Every tensor by its name, with its place on disk.

        Raises:
            CheckpointError: a file is missing or can't be read.
        """
        stored: dict[str, StoredTensor] = {}
        for file in self.files:
            stored.update({item.info.name: item for item in _read_header(file)})
        return stored

    @cached_property
    def files(self) -> list[Path]:
        """The safetensors files that hold the tensors.

        Raises:
            CheckpointError: there are none, or the index names one that is missing.
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
    """What a path says of itself; no where it can't say, as for a name that is too long for the file system."""
    try:
        return question()
    except OSError:
        return False


def _whole_number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _first_number(config: dict[str, Any], keys: Iterable[str]) -> int | None:
    """The first of the config's values under these keys that is a whole number, and not 0."""
    return next((number for key in keys if (number := _whole_number(config.get(key)))), None)


def _sparse_layers(pattern: object) -> frozenset[int]:
    shares = pattern if isinstance(pattern, list) else []
    return frozenset(layer for layer, share in enumerate(shares) if isinstance(share, int | float) and share > 0)


def _hub_identity(path: Path) -> tuple[str | None, str | None]:
    """Name and commit from a path in the Hub's cache: ``models--ORG--NAME/snapshots/COMMIT``, or without ORG."""
    found = re.search(r"(?:^|/)models--([^/]+)/snapshots/([^/]+)$", path.absolute().as_posix())
    return (found[1].replace("--", "/", 1), found[2]) if found else (None, None)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in one of a model folder's files.

    Raises:
        CheckpointError: there is no such file, or it holds something else.
    """
    try:
        data = json.loads(path.read_bytes())
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


def _header_bytes(file: Path) -> bytes:
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 0 < length <= _MAX_HEADER_BYTES:
            raise ValueError(f"its header claims {length} bytes")
        if 8 + length > file.stat().st_size:
            raise ValueError("the file ends in its header")
        return stream.read(length)


def _read_header(file: Path) -> list[StoredTensor]:
    try:
        content = _header_bytes(file)
        header, start, size = json.loads(content), 8 + len(content), file.stat().st_size
        return [_stored(file, name, entry, start, size) for name, entry in header.items() if name != "__metadata__"]
    except KeyError as error:
        raise CheckpointError(f"{file}: is no safetensors file: its header has an entry without {error}") from None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file}: is no safetensors file: {error}") from None


def _stored(file: Path, name: str, entry: dict[str, Any], data_start: int, size: int) -> StoredTensor:
    first, last = _sizes(name, entry["data_offsets"])
    info = TensorInfo(name, str(entry["dtype"]), _sizes(name, entry["shape"]))
    if data_start + last > size:
        raise ValueError(f"the file ends before {name}")
    if first > last:
        raise ValueError(f"{name} ends before it starts")
    if info.dtype in BYTES_PER_NUMBER and math.prod(info.shape) * BYTES_PER_NUMBER[info.dtype] != last - first:
        raise ValueError(f"{name} has {last - first} bytes, which is not its shape's size")
    return StoredTensor(info, file, data_start + first, last - first)


def _sizes(name: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or any(_whole_number(number) is None or number < 0 for number in value):
        raise ValueError(f"{name} has {value!r} where sizes stand")
    return tuple(value)
