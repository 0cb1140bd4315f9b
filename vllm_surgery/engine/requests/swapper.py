# SPDX-License-Identifier: Apache-2.0
"""Swaps on an engine with slots: a patch set is put into a slot and becomes the default. No request waits for it.

It is an `Swapper` like that which writes weights, so whatever swaps there (callers, followed files, Python code) does
so here.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from vllm_surgery.client.protocol import (
    PatchName,
    SlotPatch,
    SlotsReport,
    SlotsState,
    SlotTimes,
    SwapReport,
    SwapTimes,
)
from vllm_surgery.engine.requests.admission import offered
from vllm_surgery.engine.requests.ledger import Change
from vllm_surgery.engine.requests.promotion import HoldingEngine, check_alone, check_nobody_else
from vllm_surgery.engine.server_config import logger
from vllm_surgery.engine.swap.transaction import ServedStatus, SwapCoordinator, iso_time
from vllm_surgery.errors import ConflictError, UsageError
from vllm_surgery.patch.patch_set import PatchSet

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from vllm_surgery.client.protocol import SwapMode
    from vllm_surgery.engine.requests.choice import Offer, Offered
    from vllm_surgery.engine.requests.leader import SlotLeader, SlotState
    from vllm_surgery.engine.requests.ledger import Fill
    from vllm_surgery.engine.swap.transaction import Engine

    Plan = Callable[[PatchSet, bool], Awaitable[Fill]]
    """Plans a patch set for a slot; says whether it stays when it is no longer the default."""


SHARED = "shares"
"""The id that is active where the default is drawn. No patch has it for an id, since ids have a digest."""


class SlotSwapper:
    """Swaps by slots.

    Args:
        engine: whose ranks are asked, and whose weights a promotion writes.
        leader: of the slots.
        plan: makes a slot's content.
    """

    def __init__(self, engine: Engine, leader: SlotLeader, plan: Plan) -> None:
        self._engine, self._leader, self._plan = engine, leader, plan
        self._weights = SwapCoordinator(engine)

    async def status(self) -> ServedStatus:
        """The default: the patch of requests that choose none.

        Raises:
            EngineError: ranks or engines don't agree, or the plugin isn't in them.
        """
        weights, state = await self._weights.status(), await self._leader.state()
        if state.held:
            return replace(weights, epoch=state.offer.epoch)
        only = state.offer.only_default
        return ServedStatus(
            active=active_id(state.offer),
            patches=tuple(_members(only.name, only.id)) if only is not None and only.digest else (),
            since=iso_time(state.since),
            epoch=state.offer.epoch,
            units=_units(state, only.digest if only is not None else ""),
            tensors=0,
            ranks=weights.ranks,
            cannot_swap_reason=None,
        )

    async def swap(self, patches: PatchSet, *, mode: SwapMode = "keep", if_epoch: int | None = None) -> SwapReport:
        """Makes `patches` the default. Requests that run or wait end as they began, whatever `mode` says.

        Raises:
            PatchError, MismatchError, CheckpointError: the patches aren't for this model. Nothing was changed.
            ConflictError: another change runs, `if_epoch` is stale, or all slots are in use. Nothing was changed.
            CannotSwapError: this model can't have them in a slot. Nothing was changed.
        """
        started = time.perf_counter()
        fills = (await self._plan(patches, False),) if patches else ()
        staged = _milliseconds_since(started)
        wanted = offered(patches)
        # Each question to an engine waits for the step that runs, so most swaps ask but one.
        if not self._leader.offer.unpatched or _is_default(wanted, self._leader.offer):
            before = await self._leader.state()
            if before.held and before.held != wanted.digest:
                _check_epoch(before, if_epoch)
                await self._demote(mode)
                before, if_epoch = await self._leader.state(), None
            if _is_default(wanted, before.offer):
                _check_epoch(before, if_epoch)
                times = {"total": _milliseconds_since(started)}
                return _report(wanted.id, wanted.id, before, SwapTimes(**_NO_TIMES | times))
        changed = await self._leader.change(Change(fills, shares={wanted.name: 1.0}, if_epoch=if_epoch))
        times = {"stage": staged, "apply": changed.fill_milliseconds, "total": _milliseconds_since(started)}
        report = _report(wanted.id, active_id(changed.before), changed.state, SwapTimes(**_NO_TIMES | times))
        logger.info("vllm-surgery: %s in place of %s, in a slot: no token waited", report.id, report.previous)
        return report

    async def check(self, patches: PatchSet, *, if_epoch: int | None = None) -> SwapReport:
        """Does everything of a swap that comes before anybody sees it, and takes it back.

        Raises:
            SurgeryError: what `swap` would refuse.
        """
        started = time.perf_counter()
        fills = (await self._plan(patches, False),) if patches else ()
        wanted = offered(patches)
        before = await self._leader.state()
        _check_epoch(before, if_epoch)
        if not before.held:  # Else the swap takes the patch out of the weights first, and has the slots that it left.
            await self._leader.rehearse(Change(fills, shares={wanted.name: 1.0}, if_epoch=if_epoch))
        times = {"stage": _milliseconds_since(started), "total": _milliseconds_since(started)}
        report = _report(wanted.id, active_id(before.offer), before, SwapTimes(**_NO_TIMES | times))
        return report.model_copy(update={"units": int(fills[0].content["units"]) if fills else 0})

    async def share(
        self, patches: PatchSet, share: float, *, if_epoch: int | None = None, check: bool = False
    ) -> SwapReport:
        """Gives `patches` a share of the requests that choose none; the others get what they got.

        Args:
            patches: at least one.
            share: between 0 and 1.
            if_epoch: the epoch that the caller saw.
            check: whether to take it back before anybody sees it.

        Raises:
            UsageError: there is nothing to share, or the default has another patch of this name.
            SurgeryError: as with `swap`.
        """
        started = time.perf_counter()
        fill = await self._plan(patches, False)
        before = await self._leader.state()
        _check_epoch(before, if_epoch)
        shares = _shared(fill.offered, share, before.offer)
        carry_out = self._leader.rehearse if check else self._leader.change
        changed = await carry_out(Change((fill,), shares=shares, if_epoch=before.offer.epoch))
        times = {"apply": changed.fill_milliseconds, "total": _milliseconds_since(started)}
        if not check:
            logger.info("vllm-surgery: %s in a slot for a share of %g of requests", fill.offered.id, share)
        return _report(
            active_id(changed.state.offer), active_id(before.offer), changed.state, SwapTimes(**_NO_TIMES | times)
        )

    async def undo(self, *, mode: SwapMode = "keep", if_epoch: int | None = None) -> SwapReport:
        """Takes the last change of the slots back. Requests that run or wait end as they began.

        A patch that was promoted before it comes back into its slot, not into the weights.

        Args:
            mode: without meaning here.
            if_epoch: the epoch that the caller saw.

        Raises:
            ConflictError: nothing was changed yet, or another change came in between.
            SurgeryError: as with `swap`.
        """
        del mode
        started = time.perf_counter()
        before = await self._leader.before()
        sets = {name: PatchSet.from_data(before.patches[item.digest]) for name, item in before.offer.patches.items()}
        fills = tuple([await self._plan(patches, name in before.kept) for name, patches in sets.items()])
        now = await self._leader.state()
        change = Change(
            fills,
            free=tuple(now.offer.patches),
            shares=before.offer.shares,
            if_epoch=before.epoch if if_epoch is None else if_epoch,
            unpatched=True,
        )
        changed = await self._leader.change(change)
        times = {"apply": changed.fill_milliseconds, "total": _milliseconds_since(started)}
        report = _report(
            active_id(changed.state.offer), active_id(changed.before), changed.state, SwapTimes(**_NO_TIMES | times)
        )
        logger.info("vllm-surgery: %s again in place of %s, in slots", report.id, report.previous)
        return report

    async def promote(self, *, mode: SwapMode = "keep", if_epoch: int | None = None) -> SwapReport:
        """Writes the default into the weights. Requests under it go on as they were.

        Raises:
            UsageError: there is no one patch to promote.
            ConflictError: other patches are in slots, or requests run without the default.
            SurgeryError: as with any swap of weights.
        """
        async with self._leader.claim() as claim:
            before = await self._leader.state()
            _check_epoch(before, if_epoch)
            default = check_alone(before)
            patches = PatchSet.from_data(await self._leader.patches(default.digest))
            # First nobody may come without it, then nobody may be there without it.
            await self._leader.change(Change(unpatched=False, claim=claim))
            try:
                check_nobody_else(await self._leader.state(), default)
                report = await self._write(patches, default.digest, before.held, mode, claim)
            except BaseException:
                if not before.held:
                    await self._leader.change(Change(unpatched=True, claim=claim))
                raise
            return report.model_copy(update={"epoch": (await self._leader.state()).offer.epoch})

    async def _demote(self, mode: SwapMode) -> None:
        """Takes the promoted patch out of the weights again; its requests go on by its slot."""
        async with self._leader.claim() as claim:
            before = await self._leader.state()
            if before.held:
                await self._write(PatchSet(), "", before.held, mode, claim)
                await self._leader.change(Change(unpatched=True, claim=claim))

    async def _write(self, patches: PatchSet, digest: str, before: str, mode: SwapMode, claim: str) -> SwapReport:
        holding = HoldingEngine(self._engine, self._leader, claim, digest, before)
        return await SwapCoordinator(holding).swap(patches, mode=mode)

    @property
    def active(self) -> str:
        """The id of the default, or that it is drawn, as far as this process knows without asking an engine."""
        return active_id(self._leader.offer)

    async def slots(self) -> SlotsState:
        """The slots, and how many requests use each."""
        return slots_state(await self._leader.state())

    async def change(
        self,
        fill: Sequence[PatchSet] = (),
        *,
        free: Sequence[str] = (),
        shares: Mapping[str, float] | None = None,
        if_epoch: int | None = None,
        check: bool = False,
    ) -> SlotsReport:
        """Fills slots, frees others and sets the default, all of it or nothing; or sees whether it could be done.

        Raises:
            SurgeryError: as with `swap`, or `UsageError` for names and shares that make no sense.
        """
        started = time.perf_counter()
        fills = tuple([await self._plan(patches, True) for patches in fill])
        carry_out = self._leader.rehearse if check else self._leader.change
        changed = await carry_out(Change(fills, tuple(free), shares, if_epoch))
        times = SlotTimes(fill=changed.fill_milliseconds, total=_milliseconds_since(started))
        state = slots_state(changed.state)
        if not check:
            logger.info("vllm-surgery: slots hold %s; the default is %s", _names(state), state.default)
        return SlotsReport(epoch=changed.state.offer.epoch, slots=state, milliseconds=times)


_NO_TIMES = dict.fromkeys(("stage", "pause", "apply", "verify", "total"), 0.0)


def active_id(offer: Offer) -> str:
    """The id of the default, or that it is drawn."""
    only = offer.only_default
    return SHARED if only is None else only.id


def _is_default(wanted: Offered, offer: Offer) -> bool:
    only = offer.only_default
    return only is not None and only.digest == wanted.digest


def slots_state(state: SlotState) -> SlotsState:
    """The slots as callers are told of them."""
    patches = [
        SlotPatch(name=slot["name"], id=slot["id"], units=slot["units"], users=slot["users"], leaving=slot["leaving"])
        for slot in state.slots
    ]
    return SlotsState(count=state.count, default=dict(state.offer.shares), patches=patches, unpatched=state.unpatched)


def _shared(wanted: Offered, share: float, offer: Offer) -> dict[str, float]:
    """The shares of the default where `wanted` has one of them, and the others theirs of the rest.

    Raises:
        UsageError: there is nothing to share, or two patches would have one name.
    """
    same = offer.patches.get(wanted.name)
    if same is not None and same.digest != wanted.digest:
        raise UsageError(
            f"share: {same.id} has that name already, and requests tell patches by name; call one of them otherwise"
        )
    others = {name: part for name, part in offer.shares.items() if name != wanted.name}
    if not others:
        raise UsageError(f"share: {wanted.id} is all of the default, so there is nothing to share")
    rest = sum(others.values())
    return {wanted.name: share, **{name: part / rest * (1 - share) for name, part in others.items()}}


def _check_epoch(state: SlotState, if_epoch: int | None) -> None:
    epoch = state.offer.epoch
    if if_epoch is not None and if_epoch != epoch:
        raise ConflictError(f"the epoch is {epoch}, not {if_epoch}: patches were swapped in between")


def _report(active: str, previous: str, state: SlotState, times: SwapTimes) -> SwapReport:
    only = state.offer.only_default
    return SwapReport(
        id=active,
        previous=previous,
        epoch=state.offer.epoch,
        units=_units(state, only.digest if only is not None else ""),
        tensors=0,
        modules=0,
        milliseconds=times,
    )


def _units(state: SlotState, digest: str) -> int:
    return next((int(slot["units"]) for slot in state.slots if slot["digest"] == digest), 0)


def _members(name: str, patch_id: str) -> list[PatchName]:
    """Of a patch set: its name and its id are those of its patches, each sorted and joined. An id may be shortened."""
    names, ids = name.split("+"), patch_id.split("+")
    if len(names) != len(ids):
        return [PatchName(name=name, id=patch_id)]
    return [PatchName(name=one, id=one_id) for one, one_id in zip(names, ids, strict=True)]


def _names(state: SlotsState) -> str:
    return ", ".join(patch.id for patch in state.patches if not patch.leaving) or "nothing"


def _milliseconds_since(started: float) -> float:
    return (time.perf_counter() - started) * 1000
