# SPDX-License-Identifier: Apache-2.0
"""Swapping to what followed files ask for, whenever they ask for something else."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Protocol

from vllm_surgery.errors import ConflictError, EngineError, SurgeryError, one_line

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

    from vllm_surgery.patch.followed_files import DesiredFiles, Reading
    from vllm_surgery.patch.patch_set import PatchSet

INTERVAL_SECONDS = 1.0
"""Between two looks at the files: a person who saves one sees it served within two of these, and reading a patch file,
at most 1 MiB, once a second is no load."""

LONGEST_WAIT_SECONDS = 60.0
"""Between two attempts at a swap that others keep in the way. The wait doubles from one interval up to this."""


class _Status(Protocol):
    @property
    def active(self) -> str: ...


class _Surgeon(Protocol):
    async def status(self) -> _Status: ...

    async def swap(self, patches: PatchSet) -> Any: ...


class Follower:
    """Keeps a server at what its files ask for.

    - Content counts once it was read the same twice in a row: a file that is half written when it is looked at may be
      a sound patch, with half of the edits.
    - Content that is refused, by itself or by the server, changes nothing, is logged once, and isn't tried again until
      a file changes. Only a swap that another one is in the way of is tried again.
    - What someone else swaps in stays until the files ask for other patches than before.

    Attributes:
        on_reading: is told whatever the files say, at every look.
    """

    def __init__(
        self,
        files: DesiredFiles,
        surgeon: _Surgeon,
        logger: logging.Logger,
        interval: float = INTERVAL_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._files, self._surgeon, self._logger = files, surgeon, logger
        self._interval, self._clock = interval, clock
        self._seen = ""  # Fingerprint of the last reading.
        self._dealt_with = ""  # Fingerprint of the last reading that needs nothing more.
        self._served: tuple[tuple[str, str], ...] | None = None  # What the files asked for when it was last served.
        self._error: tuple[str, str] | None = None  # Fingerprint, and why the swap to it failed.
        self._attempts, self._not_before = 0, 0.0
        self.on_reading: Callable[[Reading], None] | None = None

    async def run(self) -> None:
        """Follows the files until it is cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(self._interval)

    async def look(self) -> None:
        """Looks at the files once, and swaps where that is called for."""
        reading = await asyncio.to_thread(self._files.read)
        if self.on_reading:
            self.on_reading(reading)
        settled, self._seen = reading.fingerprint == self._seen, reading.fingerprint
        if not settled:
            self._attempts, self._not_before = 0, 0.0
        elif reading.fingerprint != self._dealt_with and self._clock() >= self._not_before:
            await self._deal_with(reading)

    def error_of(self, reading: Reading) -> str | None:
        """Why the swap to what the files say failed; None where it didn't, or is still to come."""
        return self._error[1] if self._error and self._error[0] == reading.fingerprint else None

    async def _deal_with(self, reading: Reading) -> None:
        patches = reading.patches
        if patches is None:
            self._logger.error("vllm-surgery: the watched files are refused, so nothing was changed: %s", reading.error)
        elif _meaning(patches) != self._served and not await self._serve(reading, patches):
            return
        self._dealt_with = reading.fingerprint

    async def _serve(self, reading: Reading, patches: PatchSet) -> bool:
        """Whether nothing more is to be tried with this reading."""
        try:
            if (await self._surgeon.status()).active != patches.id:
                await self._surgeon.swap(patches)
        except Exception as error:  # A worker that died, say. Whatever it is, the files must go on being followed.
            self._served = None
            self._fail(reading.fingerprint, error)
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
    """Whether the same swap would fail again: it was refused for what it is, or failed in the middle and was undone."""
    refused = isinstance(error, SurgeryError) and not isinstance(error, ConflictError)
    return refused and type(error) is not EngineError  # That bare type says that the engine's state wasn't clear.


def _meaning(patches: PatchSet) -> tuple[tuple[str, str], ...]:
    """What the patches are and do, without their prose."""
    return tuple(sorted((member.patch.name, member.patch.digest) for member in patches.members))
