# SPDX-License-Identifier: Apache-2.0
"""Patch files on disk: reading within bounds, and writing whole."""

from __future__ import annotations

import os
from pathlib import Path

from vllm_surgery.atomic_files import atomic_write, atomic_write_bytes
from vllm_surgery.errors import SurgeryError, UsageError
from vllm_surgery.patch.direction import is_file_name
from vllm_surgery.patch.direction_files import NAME, beside, direction_file, holds_directions
from vllm_surgery.patch.document import MAX_BYTES
from vllm_surgery.patch.format import Patch, Project
from vllm_surgery.regular_files import read_regular


def write_patch(patch: Patch, file: Path) -> None:
    """Writes a patch file, JSON where its name says so, else YAML. It is either all there or as it was.

    Raises:
        SurgeryError: it can't be written.
    """
    content = patch.to_json() if file.suffix == ".json" else patch.to_yaml()
    try:
        atomic_write(file, content)
    except OSError as error:
        raise SurgeryError(f"{file}: can't be written: {error.strerror or error}") from None


def write_patch_and_directions(patch: Patch, file: Path) -> Patch:
    """Writes a patch file, and beside it a safetensors file of the directions whose numbers the patch holds itself.

    Returns:
        The patch as it was written. Where it has no such directions, or a file of them can't be called like the patch,
        that is `patch` itself.

    Raises:
        UsageError: a file of that name holds something else, such as a model's weights. Nothing was written.
        SurgeryError: one of the two can't be written.
    """
    projects = [edit for edit in patch.edits if isinstance(edit, Project) and edit.direction.file is None]
    name = f"{file.stem}.safetensors"
    if not projects or not is_file_name(name):
        write_patch(patch, file)
        return patch
    if (there := file.with_name(name)).exists() and not holds_directions(there):
        raise UsageError(f"{there}: is there, and is no file of directions; give the patch another name")
    distinct = dict.fromkeys(edit.direction for edit in projects)
    content, named = direction_file({f"{NAME}{number}": each for number, each in enumerate(distinct)}, name)
    of = dict(zip(distinct, named.values(), strict=True))
    try:
        atomic_write_bytes(file.with_name(name), content)
    except OSError as error:
        raise SurgeryError(f"{file.with_name(name)}: can't be written: {error.strerror or error}") from None
    edits = [
        edit.model_copy(update={"direction": of[edit.direction]}) if edit in projects else edit for edit in patch.edits
    ]
    patch = patch.model_copy(update={"edits": edits})
    write_patch(patch, file)
    return patch


def load_patch(path: str | Path) -> Patch:
    """Reads one patch file.

    Raises:
        UsageError: there is no such file, or it can't be read.
        PatchError: one line with file, place and reason.
    """
    return Patch.parse(read_bounded(Path(path)), str(path), beside(path))


def read_bounded(path: Path) -> bytes:
    """The bytes of a file, as far as a patch may go and one more, so that a huge file can't fill the memory."""
    try:
        return read_regular(path, MAX_BYTES)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def is_file(word: str) -> bool:
    """True if a word means a patch file rather than a patch in the server's folders."""
    return os.sep in word or word.endswith(ENDINGS) or Path(word).is_file()


ENDINGS = (".yaml", ".yml", ".json")
"""Suffixes of patch file names."""


SCHEMA_FILE = "schema.json"
"""The JSON Schema of patches, which lies beside them where editors look for it."""
