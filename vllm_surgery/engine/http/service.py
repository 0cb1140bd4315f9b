# SPDX-License-Identifier: Apache-2.0
"""What callers of a running server can ask of it, without the web framework that carries it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vllm_surgery.client.protocol import Desired, ListedPatch, PatchListing, ServerState
from vllm_surgery.engine.http.access import ForbiddenError
from vllm_surgery.engine.server_config import logger
from vllm_surgery.errors import SurgeryError
from vllm_surgery.patch.format import Patch
from vllm_surgery.patch.patch_set import PatchSet, SourcedPatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm_surgery.client.protocol import ModelSummary, SwapReport, SwapRequest
    from vllm_surgery.engine.file_watcher import FileWatcher
    from vllm_surgery.engine.swap.transaction import Swapper
    from vllm_surgery.patch.folders import PatchLibrary
    from vllm_surgery.patch.watched_files import WatchedFiles


@dataclass
class SurgeryService:
    """The state of one API server's process: everything that its routes need.

    Attributes:
        swapper: carries swaps out.
        library: the patches that go by a name.
        model: what is served.
        inline: whether callers may send patches themselves.
        files: the files that are followed; None where none are.
        watcher: what follows them; None in every process but one.
    """

    swapper: Swapper
    library: PatchLibrary
    model: ModelSummary
    inline: bool = True
    files: WatchedFiles | None = None
    watcher: FileWatcher | None = None
    _swaps: set[asyncio.Task[SwapReport]] = field(default_factory=set, init=False)

    async def state(self) -> ServerState:
        """What is served, what is asked for, and what can be done.

        Raises:
            EngineError: the engine's workers don't tell, or don't agree.
        """
        status = await self.swapper.status()
        return ServerState(
            active=status.active,
            patches=list(status.patches),
            since=status.since,
            epoch=status.epoch,
            units=status.units,
            tensors=status.tensors,
            ranks=status.ranks,
            desired=await self._desired(status.active),
            watching=self.files is not None,
            can_swap=status.cannot_swap_reason is None,
            cannot_swap_reason=status.cannot_swap_reason,
            model=self.model,
        )

    async def listing(self) -> PatchListing:
        """What can be asked for by name."""
        named = await asyncio.to_thread(self.library.listing)
        return PatchListing(patches=[ListedPatch(name=one.name, id=one.id, error=one.error) for one in named])

    async def swap(self, request: SwapRequest) -> SwapReport:
        """Serves what is asked for from now on. Once begun it is carried out, whether or not anybody still waits.

        Raises:
            ForbiddenError: patches may not be sent here.
            SurgeryError: it is refused or failed; the type says which.
        """
        patches = await asyncio.to_thread(self._resolve, request.patches)
        swap = self.swapper.swap(patches, mode=request.mode, if_epoch=request.if_epoch)
        task: asyncio.Task[SwapReport] = asyncio.create_task(self._logged(swap, patches))
        self._swaps.add(task)
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    async def _logged(self, swap: Any, patches: PatchSet) -> SwapReport:
        try:
            report: SwapReport = await swap
        except SurgeryError as error:
            logger.warning("vllm-surgery: no swap to %s: %s", patches.id, error)
            raise
        return report

    def _forget(self, task: asyncio.Task[SwapReport]) -> None:
        self._swaps.discard(task)
        if not task.cancelled():
            task.exception()  # Looked at, so that asyncio doesn't complain where the caller has gone away.

    async def _desired(self, active: str) -> Desired:
        if self.files is None:
            return Desired(id=active)
        snapshot = await asyncio.to_thread(self.files.read)
        failure = self.watcher.error_of(snapshot) if self.watcher else None
        return Desired(id=snapshot.id, error=snapshot.error or failure)

    def _resolve(self, wanted: Sequence[str | dict[str, Any]]) -> PatchSet:
        return PatchSet(tuple(self._resolve_one(number, item) for number, item in enumerate(wanted)))

    def _resolve_one(self, number: int, item: str | dict[str, Any]) -> SourcedPatch:
        if isinstance(item, str):
            return self.library.load(item)
        if not self.inline:
            raise ForbiddenError("this server takes no patches from callers, only names (allow_inline is off)")
        source = f"patches[{number}]"
        return SourcedPatch(source, Patch.from_data(item, source))
