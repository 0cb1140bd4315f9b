# SPDX-License-Identifier: Apache-2.0
"""Operations on a running server's patches, without the web framework that carries them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vllm_surgery.client.protocol import Desired, ListedPatch, PatchListing, ServerState
from vllm_surgery.engine.http.access import ForbiddenError
from vllm_surgery.engine.http.disclosure import SEE_LOG, without_folders
from vllm_surgery.engine.server_config import logger
from vllm_surgery.errors import CannotSwapError, PatchError, SurgeryError
from vllm_surgery.patch.format import Patch
from vllm_surgery.patch.patch_set import PatchSet, SourcedPatch

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from vllm_surgery.client.protocol import ModelSummary, SlotsReport, SwapReport, SwapRequest
    from vllm_surgery.engine.file_watcher import FileWatcher
    from vllm_surgery.engine.requests.metrics import InstrumentedSlots
    from vllm_surgery.engine.swap.transaction import Swapper
    from vllm_surgery.patch.folders import NamedPatch, PatchLibrary
    from vllm_surgery.patch.watched_files import WatchedFiles


_MOST_TOLD = 64
"""Errors of files that are remembered, so that a page which asks every few seconds doesn't fill the log."""


@dataclass
class SurgeryService:
    """Operations of one API server process, and the state that they need.

    Attributes:
        swapper: carries swaps out.
        library: the patches that go by a name.
        model: what is served.
        inline: whether callers may send patches themselves.
        files: the files that are followed; None where none are.
        watcher: what follows them; None in every process but one.
        slots: changes the slots; None on a server without.
        on_loop: what is done with answers that loop, for people; None where nothing is.
        refuses: why nothing can be changed over HTTP; None where it can.
    """

    swapper: Swapper
    library: PatchLibrary
    model: ModelSummary
    inline: bool = True
    files: WatchedFiles | None = None
    watcher: FileWatcher | None = None
    slots: InstrumentedSlots | None = None
    on_loop: str | None = None
    refuses: str | None = None
    _told: frozenset[str] = field(default=frozenset(), init=False)
    _swaps: set[asyncio.Task[Any]] = field(default_factory=set, init=False)

    async def state(self) -> ServerState:
        """State of the server: what is served, what is asked for, and whether it can be swapped.

        Raises:
            EngineError: the engine's workers don't tell, or don't agree.
        """
        status = await self.swapper.status()
        reason = self.refuses or status.cannot_swap_reason
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
            can_swap=reason is None,
            cannot_swap_reason=reason and without_folders(reason),
            model=self.model,
            slots=None if self.slots is None else await self.slots.slots(),
            on_loop=self.on_loop,
        )

    async def listing(self) -> PatchListing:
        """Patches that can be asked for by name."""
        named = await asyncio.to_thread(self.library.listing)
        return PatchListing(patches=[self._listed(one) for one in named])

    def _listed(self, one: NamedPatch) -> ListedPatch:
        if one.error is None:
            return ListedPatch(name=one.name, id=one.id)
        if one.error not in self._told:
            self._told = frozenset([*list(self._told)[-_MOST_TOLD:], one.error])
            logger.warning("vllm-surgery: a patch in the folders is refused: %s", one.error)
        return ListedPatch(name=one.name, id=None, error=f"{one.name} {SEE_LOG}")

    async def put(self, request: SwapRequest) -> SwapReport | SlotsReport:
        """Carries out what is asked for.

        Raises:
            SurgeryError: as `swap` and `change_slots`.
        """
        if request.undo:
            return await self.undo(request)
        if request.promote:
            return await self.promote(request)
        return await (self.change_slots(request) if request.changes_slots else self.swap(request))

    async def promote(self, request: SwapRequest) -> SwapReport:
        """Writes the default into the weights. Once begun it is carried out, whether or not anybody still waits.

        Raises:
            CannotSwapError: this server has no slots, or can't write weights.
            SurgeryError: it is refused or failed; the type says which.
        """
        slots = self._with_slots()
        report: SwapReport = await self._to_the_end(slots.promote(mode=request.mode, if_epoch=request.if_epoch))
        return report

    async def undo(self, request: SwapRequest) -> SwapReport:
        """Takes the last change back. Once begun it is carried out, whether or not anybody still waits.

        Raises:
            ConflictError: there was none, or another came in between.
            SurgeryError: it is refused or failed; the type says which.
        """
        undo = self.swapper.undo(mode=request.mode, if_epoch=request.if_epoch)
        report: SwapReport = await self._to_the_end(undo)
        return report

    def _with_slots(self) -> InstrumentedSlots:
        if self.slots is None:
            raise CannotSwapError("this server has no slots: it was started without --patch-slots")
        return self.slots

    async def change_slots(self, request: SwapRequest) -> SlotsReport:
        """Changes what requests can choose. Once begun it is carried out, whether or not anybody still waits.

        Raises:
            CannotSwapError: this server has no slots.
            ForbiddenError: patches may not be sent here.
            SurgeryError: it is refused; the type says how.
        """
        slots = self._with_slots()
        singles = [[item] for item in request.fill]
        fill = await asyncio.to_thread(lambda: [self._resolve(item, "fill") for item in singles])
        change = slots.change(
            fill, free=request.free, shares=request.shares, if_epoch=request.if_epoch, check=request.check
        )
        report: SlotsReport = await self._to_the_end(change)
        return report

    async def swap(self, request: SwapRequest) -> SwapReport:
        """Swaps to the requested patches. Once begun it is carried out, whether or not anybody still waits.

        Raises:
            ForbiddenError: patches may not be sent here.
            SurgeryError: it is refused or failed; the type says which.
        """
        patches = await asyncio.to_thread(self._resolve, request.patches or [])
        report: SwapReport = await self._to_the_end(self._logged(self._swap(patches, request), patches))
        return report

    def _swap(self, patches: PatchSet, request: SwapRequest) -> Coroutine[Any, Any, SwapReport]:
        if request.share is not None:
            slots = self._with_slots()
            return slots.share(patches, request.share, if_epoch=request.if_epoch, check=request.check)
        if request.check:
            return self.swapper.check(patches, if_epoch=request.if_epoch)
        return self.swapper.swap(patches, mode=request.mode, if_epoch=request.if_epoch)

    async def _to_the_end(self, work: Coroutine[Any, Any, Any]) -> Any:
        task = asyncio.create_task(work)
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

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._swaps.discard(task)
        if not task.cancelled():
            task.exception()  # Looked at, so that asyncio doesn't complain where the caller has gone away.

    async def _desired(self, active: str) -> Desired:
        if self.files is None:
            return Desired(id=active)
        snapshot = await asyncio.to_thread(self.files.read)
        if snapshot.refused:
            return Desired(id=None, error=f"{snapshot.refused} {SEE_LOG}")
        failure = self.watcher.error_of(snapshot) if self.watcher else None
        return Desired(id=snapshot.id, error=failure and without_folders(failure))

    def _resolve(self, wanted: Sequence[str | dict[str, Any]], field: str = "patches") -> PatchSet:
        return PatchSet(tuple(self._resolve_one(f"{field}[{number}]", item) for number, item in enumerate(wanted)))

    def _resolve_one(self, source: str, item: str | dict[str, Any]) -> SourcedPatch:
        if isinstance(item, str):
            return self._load(item)
        if not self.inline:
            raise ForbiddenError("this server takes no patches from callers, only names (allow_inline is off)")
        return SourcedPatch(source, Patch.from_data(item, source))

    def _load(self, name: str) -> SourcedPatch:
        """The patch of a name. What is wrong with a file is for the log: an answer quotes no file."""
        try:
            return self.library.load(name)
        except PatchError as error:
            logger.warning("vllm-surgery: a patch that was asked for is refused: %s", error)
            raise PatchError(error.source, "", SEE_LOG) from None
