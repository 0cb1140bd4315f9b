# SPDX-License-Identifier: Apache-2.0
"""Following files: whatever patches stand in them is what a server is to serve. Knows neither vLLM nor HTTP."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_surgery.errors import SurgeryError
from vllm_surgery.patch.direction_files import beside, marks_beside
from vllm_surgery.patch.files import read_bounded
from vllm_surgery.patch.format import Patch
from vllm_surgery.patch.patch_set import PatchSet, SourcedPatch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True)
class Snapshot:
    """The content of the watched files at one time.

    Attributes:
        fingerprint: the same for two snapshots where the files held the same bytes, or lacked the same. Of a patch that
            may name files of directions, only where those beside it are the same files too.
        patches: what they ask for; None where they are refused.
        error: why they are refused, one line that may quote them; empty where they aren't.
        refused: the name of the file that is refused; empty where none is.
    """

    fingerprint: str
    patches: PatchSet | None
    error: str = ""
    refused: str = ""

    @property
    def id(self) -> str | None:
        """The id of the patches."""
        return None if self.patches is None else self.patches.id


class WatchedFiles:
    """Patch files that say together what is to be served.

    Errors call them by their names alone: who sees those need not know where the files are.

    They are told apart by their bytes: times of change say nothing where a symbolic link is moved to another file.
    """

    def __init__(self, paths: Iterable[str | Path]) -> None:
        self.paths = tuple(Path(path) for path in paths)
        self._last: Snapshot | None = None

    def read(self) -> Snapshot:
        """Reads the files now. Never raises: a file that is missing or wrong is an error in the snapshot."""
        contents: list[bytes] = []
        for path in self.paths:
            try:
                contents.append(read_bounded(path))
            except SurgeryError as error:
                reason = str(error).replace(str(path), path.name, 1)
                return Snapshot(f"unread: {error}", None, reason, path.name)
        fingerprint = "+".join(map(_fingerprint, self.paths, contents))
        last = self._last
        if last is None or last.fingerprint != fingerprint:
            last = self._last = self._parse(fingerprint, contents)
        return last

    def _parse(self, fingerprint: str, contents: Sequence[bytes]) -> Snapshot:
        members: list[SourcedPatch] = []
        for path, content in zip(self.paths, contents, strict=True):
            try:
                members.append(SourcedPatch(path.name, Patch.parse(content, path.name, beside(path))))
                PatchSet(tuple(members))
            except SurgeryError as error:
                return Snapshot(fingerprint, None, str(error), path.name)
        return Snapshot(fingerprint, PatchSet(tuple(members)))


def _fingerprint(path: Path, content: bytes) -> str:
    digest = hashlib.sha256(content)
    if b"direction" in content:  # It may name files whose coming makes it whole.
        digest.update(marks_beside(path))
    return digest.hexdigest()
