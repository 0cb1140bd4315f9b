# SPDX-License-Identifier: Apache-2.0
"""Patches as a command line or a server's settings name them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from vllm_surgery.errors import PatchError, SurgeryError
from vllm_surgery.imports.foreign import read_foreign
from vllm_surgery.imports.forms import recognised
from vllm_surgery.imports.remote import fetch_patch, is_address
from vllm_surgery.patch.files import load_patch
from vllm_surgery.patch.format import Patch
from vllm_surgery.patch.patch_set import PatchSet, SourcedPatch

if TYPE_CHECKING:
    from collections.abc import Iterable


def load_patches(words: Iterable[str | Path]) -> PatchSet:
    """Reads the patches that some words name, as one set.

    Raises:
        UsageError: a file is missing.
        PatchError: a file is refused, which names the way in where it is in another tool's form; or two patches name
            the same unit.
    """
    return PatchSet(tuple(load_named(word) for word in words))


def load_named(word: str | Path) -> SourcedPatch:
    """The patch that a word names: a file's, or one at an address (see `vllm_surgery.imports.remote`).

    Raises:
        UsageError: there is no such file, or nothing can be had from the address.
        PatchError: it is refused.
    """
    source = str(word)
    if is_address(source):
        return SourcedPatch(source, Patch.parse(fetch_patch(source), source))
    try:
        return SourcedPatch(source, load_patch(word))
    except PatchError as error:
        _refuse_with_its_form(Path(word), error)


def _refuse_with_its_form(path: Path, error: PatchError) -> NoReturn:
    """Refuses a file that is no patch; where it is in another tool's form, with the command that makes one of it."""
    try:
        form = recognised(read_foreign(path))
    except SurgeryError:
        form = None
    if form is None:
        raise error
    raise PatchError(
        str(path), "", f"is {form.title}, no patch; make one of it with `vllm-surgery import {path.name} --model DIR`"
    ) from None
