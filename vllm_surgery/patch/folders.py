# SPDX-License-Identifier: Apache-2.0
"""Patch folders: the patches that a caller may ask for by name.

A name is compared with the names that the folders' listings give. No path is ever made from it, so that no name,
however it is spelled, can lead out of the folders.
"""

from __future__ import annotations

import errno
import os
import re
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_surgery.errors import PatchError, SurgeryError, UsageError, one_line
from vllm_surgery.patch.direction_files import DirectionFiles
from vllm_surgery.patch.document import MAX_BYTES
from vllm_surgery.patch.files import ENDINGS, SCHEMA_FILE
from vllm_surgery.patch.format import Patch
from vllm_surgery.patch.patch_set import NO_PATCH, SourcedPatch
from vllm_surgery.regular_files import read_regular

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


# Of a name that is repeated in an error.
_NAME_LIMIT = 80

_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}@[0-9a-f]{8}")


@dataclass(frozen=True)
class _Entry:
    """A file that stands for a patch. `folder` has no symbolic links in it."""

    folder: Path
    file: str

    @property
    def name(self) -> str:
        return self.file.rsplit(".", 1)[0]

    def read(self) -> bytes:
        """Its bytes, as far as a patch may go and one more.

        Raises:
            PatchError: it isn't a regular file inside the folder.
        """
        try:
            path = (self.folder / self.file).resolve(strict=True)
            if not path.is_relative_to(self.folder):
                raise PatchError(self.file, "", "is a link that leads out of its folder")
            return read_regular(path, MAX_BYTES, follow=False)
        except (OSError, RuntimeError) as error:  # A circle of links is the latter before Python 3.13.
            raise PatchError(self.file, "", getattr(error, "strerror", None) or "is a circle of links") from None

    def load(self) -> SourcedPatch:
        """The patch in it.

        Raises:
            PatchError: it is refused.
        """
        return SourcedPatch(self.file, _parsed(self.read(), self.file, self.folder))


@lru_cache(maxsize=16)
def _parsed(content: bytes, file: str, folder: Path) -> Patch:
    """Parses a patch; one that was read lately isn't parsed again as long as its file says the same."""
    # Of files of directions beside it the patch has the hashes, so these say the same too.
    return Patch.parse(content, file, DirectionFiles(folder))


@dataclass(frozen=True)
class NamedPatch:
    """A patch that a folder offers.

    Attributes:
        name: under which it is asked for: the file's name without its ending.
        id: of the patch in it; None where it is refused.
        error: why it is refused.
    """

    name: str
    id: str | None
    error: str | None = None


class PatchLibrary:
    """The patches in some folders.

    A patch goes by its file's name without the ending, whatever name stands in the file. Files whose names start with
    a dot are left out: Kubernetes keeps its bookkeeping in such, editors their backups. So is `SCHEMA_FILE`.
    """

    def __init__(self, folders: Iterable[str | Path]) -> None:
        self._folders = tuple(Path(folder) for folder in folders)

    def names(self) -> list[str]:
        """Every name, sorted, those of broken files too."""
        return sorted(self._entries())

    def listing(self) -> list[NamedPatch]:
        """Every name with the id of its patch, or with the reason why it has none."""
        return [_listed(name, entries) for name, entries in sorted(self._entries().items())]

    def load(self, name: str) -> SourcedPatch:
        """The patch that goes by `name`, or whose id it is. In errors it goes by its file's name, without the folder.

        Raises:
            UsageError: no patch goes by that name, or several do.
            PatchError: it is refused.
        """
        entries = self._entries().get(name, [])
        if entries:
            return _only(name, entries).load()
        found = self._of_id(name) if _ID.fullmatch(name) else None
        if found is None:
            raise UsageError(self._unknown(name))
        return found

    def _of_id(self, wanted: str) -> SourcedPatch | None:
        """The first patch that has this id; two files with one id hold the same edits."""
        for entries in self._entries().values():
            for entry in entries:
                with suppress(PatchError):
                    if (member := entry.load()).patch.id == wanted:
                        return member
        return None

    def _entries(self) -> dict[str, list[_Entry]]:
        entries = defaultdict(list)
        for folder in self._folders:
            for entry in _entries_of(folder):
                entries[entry.name].append(entry)
        return entries

    def _unknown(self, name: str) -> str:
        asked = f"no patch is called {one_line(name, _NAME_LIMIT)!r}"
        if not self._folders:
            return f"{asked}: this server has no patch folder"
        if name.endswith(ENDINGS) and name.rsplit(".", 1)[0] in self._entries():
            return f"{asked}; leave the ending out"
        if _ID.fullmatch(name) and name.rpartition("@")[0] in self._entries():
            return f"{asked}: the one of that name in the server's patch folders holds other edits"
        return f"{asked} in the server's patch folders"


def check_folder(folder: str | Path) -> Path:
    """The absolute path of a patch folder.

    Raises:
        UsageError: there is no such folder, or it can't be read.
    """
    path = Path(folder)
    if not path.is_dir():
        raise UsageError(f"{folder}: {'is not a folder' if path.exists() else 'no such folder'}")
    if not os.access(path, os.R_OK | os.X_OK):
        raise UsageError(f"{folder}: {os.strerror(errno.EACCES)}")
    return path.absolute()


def _entries_of(folder: Path) -> Iterator[_Entry]:
    try:
        resolved = folder.resolve(strict=True)
        files = sorted(item.name for item in os.scandir(resolved))
    except (OSError, RuntimeError):  # A folder that went away holds nothing; it may come back.
        return
    for file in files:
        # What isn't printable, which half of a character isn't either, couldn't be put into JSON or a log.
        if file.endswith(ENDINGS) and not file.startswith(".") and file.isprintable() and file != SCHEMA_FILE:
            yield _Entry(resolved, file)


def _only(name: str, entries: list[_Entry]) -> _Entry:
    if name == NO_PATCH:
        raise UsageError(f"{entries[0].file}: {NO_PATCH!r} stands for no patch at all; call the file something else")
    if len(entries) > 1:
        several = " and ".join(entry.file for entry in entries)
        raise UsageError(f"{name!r} is ambiguous: {several} go by that name")
    return entries[0]


def _listed(name: str, entries: list[_Entry]) -> NamedPatch:
    try:
        return NamedPatch(name, id=_only(name, entries).load().patch.id)
    except SurgeryError as error:
        return NamedPatch(name, id=None, error=str(error))
