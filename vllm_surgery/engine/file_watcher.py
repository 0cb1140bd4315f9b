# SPDX-License-Identifier: Apache-2.0
"""Watcher that swaps a server to the patches in its watched files whenever these change."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Protocol

from vllm_surgery.errors import ConflictError, EngineError, SurgeryError, one_line

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

    from vllm_surgery.patch.patch_set import PatchSet
    from vllm_surgery.patch.watched_files import Snapshot, WatchedFiles

INTERVAL_SECONDS = 1.0
"""Between two looks at the files: a person who saves one sees it served within two of these, and reading a patch file,
at most 1 MiB, once a second is no load."""

LONGEST_WAIT_SECONDS = 60.0
"""Between two attempts at a swap that others keep in the way. The wait doubles from one interval up to this."""


class _Status(Protocol):
    @property
    def active(self) -> str: ...


class _Swapper(Protocol):
    async def status(self) -> _Status: ...

    async def swap(self, patches: PatchSet) -> Any: ...


class FileWatcher:
    """Keeps a server at what its files ask for.

    - Content counts once it was read the same twice in a row: a file that is half written when it is looked at may be
      a sound patch, with half of the edits.
    - Content that is refused, by itself or by the server, changes nothing, is logged once, and isn't tried again until
      a file changes. Only a swap that another one is in the way of is tried again.
    - What someone else swaps in stays until the files ask for other patches than before.

    Attributes:
        on_snapshot: is told whatever the files say, at every look.
    """

    def __init__(
        self,
        files: WatchedFiles,
        swapper: _Swapper,
        logger: logging.Logger,
        interval: float = INTERVAL_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._files, self._swapper, self._logger = files, swapper, logger
        self._interval, self._clock = interval, clock
        self._seen = ""  # Fingerprint of the last snapshot.
        self._dealt_with = ""  # Fingerprint of the last snapshot that needs nothing more.
        self._served: tuple[tuple[str, str], ...] | None = None  # What the files asked for when it was last served.
        self._error: tuple[str, str] | None = None  # Fingerprint, and why the swap to it failed.
        self._attempts, self._not_before = 0, 0.0
        self.on_snapshot: Callable[[Snapshot], None] | None = None

    async def run(self) -> None:
        """Follows the files until it is cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(self._interval)

    async def look(self) -> None:
        """Looks at the files once, and swaps where that is called for."""
        snapshot = await asyncio.to_thread(self._files.read)
        if self.on_snapshot:
            self.on_snapshot(snapshot)
        settled, self._seen = snapshot.fingerprint == self._seen, snapshot.fingerprint
        if not settled:
            self._attempts, self._not_before = 0, 0.0
        elif snapshot.fingerprint != self._dealt_with and self._clock() >= self._not_before:
            await self._deal_with(snapshot)

    def error_of(self, snapshot: Snapshot) -> str | None:
        """Reason why the swap to a snapshot failed; None where it didn't, or is still to come."""
        return self._error[1] if self._error and self._error[0] == snapshot.fingerprint else None

    async def _deal_with(self, snapshot: Snapshot) -> None:
        patches = snapshot.patches
        if patches is None:
            self._logger.error(
                "vllm-surgery: the watched files are refused, so nothing was changed: %s", snapshot.error
            )
        elif _meaning(patches) != self._served and not await self._serve(snapshot, patches):
            return
        self._dealt_with = snapshot.fingerprint

    async def _serve(self, snapshot: Snapshot, patches: PatchSet) -> bool:
        """Swaps to a snapshot; true if nothing more is to be tried with it."""
        try:
            if (await self._swapper.status()).active != patches.id:
                await self._swapper.swap(patches)
        except Exception as error:  # A worker that died, say. Whatever it is, the files must go on being followed.
            self._served = None
            self._fail(snapshot.fingerprint, error)
            self._attempts += 1
            self._not_before = self._clock() + min(self._interval * 2**self._attempts, LONGEST_WAIT_SECONDS)
            return _is_final(error)
        self._served, self._error = _meaning(patches), None
        return True

    def _fail(self, fingerprint: str, error: Exception) -> None:
        reason = str(error) if isinstance(error, SurgeryError) else one_line(f"{type(error).__name__}: {error}")
        if self._error != (fingerprint, reason):
            self._logger.error("vllm-surgery: the swap to the watched files failed: %s", reason)
        self._error = fingerprint, reason


def _is_final(error: Exception) -> bool:
    """True if the same swap would fail again: it was refused for what it is, or failed in the middle and was undone."""
    refused = isinstance(error, SurgeryError) and not isinstance(error, ConflictError)
    return refused and type(error) is not EngineError  # That bare type says that the engine's state wasn't clear.


def _meaning(patches: PatchSet) -> tuple[tuple[str, str], ...]:
    """Names and digests of the patches: what they are and do, without their prose."""
    return tuple(sorted((member.patch.name, member.patch.digest) for member in patches.members))
