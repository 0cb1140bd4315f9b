# SPDX-License-Identifier: Apache-2.0
"""A patched copy of a checkpoint, for engines without this plugin and for publishing.

An edit changes neither shapes nor number formats, so a touched file is copied as it is and the touched tensors are
overwritten in the copy, one at a time: header, metadata and every other byte stay what they were.
"""

from __future__ import annotations

import errno
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from vllm_surgery.atomic_files import atomic_folder, check_target
from vllm_surgery.errors import CheckpointError
from vllm_surgery.model.checkpoint import read_json
from vllm_surgery.offline.model_files import model_files
from vllm_surgery.patch.describe import model_card
from vllm_surgery.patch.units import MASK
from vllm_surgery.planning.check import check_patches
from vllm_surgery.planning.limits import refusal
from vllm_surgery.weights.arithmetic import apply_edit
from vllm_surgery.weights.tensors import bits, read_tensor

if TYPE_CHECKING:
    from collections.abc import Iterable
    from io import FileIO
    from pathlib import Path

    from vllm_surgery.model.checkpoint import ModelFolder, StoredTensor
    from vllm_surgery.patch.patch_set import PatchSet
    from vllm_surgery.planning.planner import Plan, TensorEdit

RECORD_FILE = "vllm_surgery.json"
CARD_FILE = "README.md"

_CHUNK_BYTES = 1 << 26  # Copied at a time, by the kernel; what the progress bar moves by.
# What `copy_file_range` says between file systems, or where one of them doesn't have it.
_NO_KERNEL_COPY = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM})
LINKED_BYTES = 64 << 20
"""Smaller files are always copied: a link would be the original, and an editor that saves the one changes the other."""


@dataclass(frozen=True)
class Baked:
    """The result of a bake.

    Attributes:
        folder: the patched copy.
        id: of the patches.
        units: neurons and experts that got a gain or a mask.
        tensors: how many were rewritten.
        written: files that are the copy's own.
        linked: files whose blocks the copy shares with the original.
        left_out: other copies of the weights, which aren't edited and so not copied.
    """

    folder: Path
    id: str
    units: int
    tensors: int
    written: int
    linked: int
    left_out: tuple[str, ...] = ()


def bake(patches: PatchSet, model: ModelFolder, out: Path, *, link: bool = True, progress: bool = False) -> Baked:
    """Writes a copy of `model` with `patches` applied: what a server that applies them at load would serve.

    The copy is made in a hidden folder beside `out` and renamed at the end. Memory: two copies of one tensor.

    Args:
        patches: what to apply.
        model: where from; it isn't touched.
        out: where to; nothing may be there but an empty folder.
        link: whether large untouched files may share their blocks with the original's (hard links), where the file
            system can do so. Otherwise all are copied, as small ones always are: people edit them.
        progress: whether to show a bar on stderr.

    Raises:
        UsageError: `out` is taken, or lies in the model's own folder.
        SurgeryError: the patches are not for this model, the checkpoint can't be read, something in its folder is a
            link to elsewhere, or `out` can't be written. Nothing is left behind.
    """
    check_target(out, model.path, "a bake is a copy")
    plan = check_patches(patches, model)
    check_bakeable(patches, plan)
    files = model_files(model)
    with atomic_folder(out) as folder:
        copy = _Copy(model, folder, link=link, progress=progress)
        copy.fill(plan, files.copied)
        _record(folder, patches)
    return Baked(out, patches.id, plan.units, len(plan.edits), copy.written, copy.linked, files.left_out)


class _Copy:
    """A copy of a model folder that is being made."""

    def __init__(self, model: ModelFolder, folder: Path, *, link: bool, progress: bool) -> None:
        self.model, self.folder = model, folder
        self.written = self.linked = 0
        self._link = link
        self._progress = progress

    def fill(self, plan: Plan, files: Iterable[Path]) -> None:
        """Links or copies these files, and rewrites what `plan` touches."""
        touched = {self.model.stored[edit.tensor].file for edit in plan.edits}
        for file in files:
            target = self.folder / file.relative_to(self.model.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            small = file.stat().st_size < LINKED_BYTES
            if self._link and not small and file not in touched and _linked(file, target):
                self.linked += 1
                continue
            copy_file(file, target, progress=self._progress)
            self.written += 1
        for edit in plan.edits:
            stored = self.model.stored[edit.tensor]
            _rewrite(stored, edit, self.folder / stored.file.relative_to(self.model.path))


def copy_file(file: Path, target: Path, *, progress: bool) -> None:
    """Copies a file's content, by the kernel where it can; with a bar on stderr where that is wanted and a terminal."""
    size, name = file.stat().st_size, file.name
    hide = None if progress else True  # None leaves it to tqdm: hidden where stderr is no terminal.
    bar = tqdm(total=size, desc=name, unit="B", unit_scale=True, disable=hide, leave=False)
    with file.open("rb", buffering=0) as source, target.open("wb", buffering=0) as copy, bar:
        while count := _copy_chunk(source, copy):
            bar.update(count)


def _copy_chunk(source: FileIO, copy: FileIO) -> int:
    """Copies some bytes from where both files stand; gives how many, 0 at the end.

    Within one file system the kernel copies, or shares the blocks where it can.
    """
    try:
        return os.copy_file_range(source.fileno(), copy.fileno(), _CHUNK_BYTES)
    except OSError as error:
        if error.errno not in _NO_KERNEL_COPY:
            raise
    chunk = source.read(_CHUNK_BYTES)
    written = 0
    while written < len(chunk):
        written += copy.write(memoryview(chunk)[written:])
    return written


def _linked(file: Path, target: Path) -> bool:
    try:
        os.link(file.resolve(), target)
    except OSError:  # Another file system, or one that has no links.
        return False
    return True


def _rewrite(stored: StoredTensor, edit: TensorEdit, target: Path) -> None:
    edited = apply_edit(read_tensor(stored), edit)
    with target.open("r+b") as file:
        file.seek(stored.start)
        file.write(bits(edited).numpy().data)


def _record(folder: Path, patches: PatchSet) -> None:
    """Writes into the model folder what was done to it: for tools, and on the model card for people."""
    file = folder / RECORD_FILE
    before = read_json(file).get("baked") if file.is_file() else []
    if not isinstance(before, list):
        raise CheckpointError(f"{RECORD_FILE}: is no record of a bake; remove it from the model's folder")
    content: list[Any] = [member.patch.to_data() for member in patches.members]
    file.write_text(json.dumps({"baked": [*before, {"id": patches.id, "patches": content}]}, indent=2) + "\n")
    with (folder / CARD_FILE).open("a") as card:
        card.writelines("\n" + model_card(member.patch) for member in patches.members)


def check_bakeable(patches: PatchSet, plan: Plan) -> None:
    """Masks that no checkpoint can hold.

    Raises:
        MismatchError: there is one.
    """
    masks = plan.engine_masks()
    for item in patches.assignments():
        if item.gain == MASK and item.layer in masks:
            raise refusal(
                item,
                f"layer {item.layer}'s router has no bias, so no checkpoint can hold the mask; serve the patch instead",
            )
