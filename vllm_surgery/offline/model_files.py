# SPDX-License-Identifier: Apache-2.0
"""The files of a model's folder that a copy of the model consists of."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_surgery.errors import CheckpointError
from vllm_surgery.model.checkpoint import tensor_names

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vllm_surgery.model.checkpoint import ModelFolder

_NEVER_COPIED = frozenset({".git", ".cache"})  # Of a clone or a download: about the original, not part of the model.

# The same weights in other formats. Some engines take these, and would serve the model as if it had never been edited.
_OTHER_FORMATS = (
    "consolidated*", "pytorch_model*.bin", "pytorch_model*.bin.index.json", "*.gguf", "*.pth", "tf_model.h5",
    "flax_model.msgpack", "*.onnx", "*.onnx_data",
)  # fmt: skip


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model's folder.

    Attributes:
        copied: those that a copy consists of.
        left_out: names of those that hold the weights once more.
    """

    copied: tuple[Path, ...]
    left_out: tuple[str, ...]


def model_files(model: ModelFolder) -> ModelFiles:
    """Sorts the files below a model's folder.

    Raises:
        CheckpointError: one is a link that leads out of the folder, and not into the Hub's cache that it lies in.
    """
    found = list(_below(model.path, _roots(model.path)))
    again = {file for file in found if _holds_weights_again(file, model)}
    return ModelFiles(
        tuple(file for file in found if file not in again),
        tuple(sorted(str(file.relative_to(model.path)) for file in again)),
    )


def _roots(folder: Path) -> tuple[Path, ...]:
    """Folders that links may lead into: the model's own, and in the Hub's cache that of all its revisions."""
    resolved = folder.resolve()
    above = [folder.absolute(), resolved]
    caches = [path.parent.parent.resolve() for path in above if path.parent.name == "snapshots"]
    return (resolved, *(cache for cache in caches if cache.name.startswith("models--")))


def _below(folder: Path, roots: tuple[Path, ...], seen: frozenset[Path] = frozenset()) -> Iterator[Path]:
    seen |= {folder.resolve()}
    for path in sorted(folder.iterdir()):
        if path.name in _NEVER_COPIED:
            continue
        if path.is_symlink():
            _check_link(path, roots)
        if path.is_dir():
            if path.resolve() not in seen:  # A circle of links.
                yield from _below(path, roots, seen)
        elif path.is_file():
            yield path


def _check_link(path: Path, roots: tuple[Path, ...]) -> None:
    if not path.exists():  # It leads nowhere, or in a circle, and isn't copied.
        return
    target = path.resolve()
    if not any(target.is_relative_to(root) for root in roots):
        raise CheckpointError(
            f"{path}: is a link that leads out of the model's folder, so a copy would hold what it leads to; put a "
            "copy in its place"
        )


def _holds_weights_again(file: Path, model: ModelFolder) -> bool:
    if file in model.files:
        return False
    if any(fnmatch.fnmatchcase(file.name, pattern) for pattern in _OTHER_FORMATS):
        return True
    beside = file.parent == model.path and file.suffix == ".safetensors"
    return beside and not tensor_names(file).isdisjoint(model.stored)
