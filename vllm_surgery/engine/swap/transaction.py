# SPDX-License-Identifier: Apache-2.0
"""Transaction of a swap: the same steps on every rank of every engine, all of them or none."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from vllm_surgery.client.protocol import PatchName, SwapReport, SwapTimes, Unverified
from vllm_surgery.engine.rpc_errors import error_of
from vllm_surgery.engine.server_config import logger
from vllm_surgery.errors import (
    CannotSwapError,
    ConflictError,
    EngineError,
    MixedWeightsError,
    SurgeryError,
    SwapFailedError,
    one_line,
)
from vllm_surgery.patch.patch_set import PatchSet

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from vllm_surgery.client.protocol import SwapMode

Result = TypeVar("Result")

FIRST_WAIT_SECONDS = 0.001
LONGEST_WAIT_SECONDS = 0.05
"""Between two looks at staging: short for small models, rare enough for large ones not to disturb the engine."""


class Engine(Protocol):
    """Interface of every kind of engine of vLLM's: a server's or an offline one, with any number of ranks."""

    async def reports(self) -> list[tuple[str, dict[str, Any]]]:
        """Name and state of every rank."""

    async def begin(self, token: str, payload: dict[str, Any]) -> tuple[list[tuple[str, dict[str, Any]]], bool]:
        """Begins a swap: the answers to the first step, and true if somebody has put the engine to sleep, or paused it.

        One question, since each waits until the engine has made a token for every request that runs.
        """

    async def step(self, name: str, token: str, payload: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        """Name of every rank and its answer to a step."""

    async def insist(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Carries `work` out to its end, whoever cancels the caller meanwhile."""

    async def meanwhile(
        self, work: Coroutine[Any, Any, Result], beat: Callable[[], Coroutine[Any, Any, None]]
    ) -> Result:
        """Result of `work`; calls `beat` now and then while it isn't there."""

    async def pause(self, mode: SwapMode) -> None:
        """Returns when no token is being made and no cache holds anything of the old weights."""

    async def resume(self) -> None:
        """Undoes `pause`."""

    async def set_version(self, patch_id: str) -> None:
        """Makes every output carry this id from now on."""

    async def wait(self, seconds: float) -> None:
        """Lets time pass."""


@dataclass(frozen=True)
class ServedStatus:
    """Patches that an engine serves, and whether they can be swapped.

    Attributes:
        active: id of the patches.
        patches: each of them.
        since: when they went in, ISO 8601 in UTC.
        epoch: counts the swaps since the start.
        units: neurons and experts that have a gain or a mask.
        tensors: checkpoint tensors that differ from the checkpoint.
        ranks: workers, over all engines.
        cannot_swap_reason: why patches can't be swapped; None where they can.
    """

    active: str
    patches: tuple[PatchName, ...]
    since: str
    epoch: int
    units: int
    tensors: int
    ranks: int
    cannot_swap_reason: str | None


class SwapCoordinator:
    """Coordinator of swaps on one engine. Any number may share the engine, which lets one swap run at a time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def status(self) -> ServedStatus:
        """Status of the engine.

        Raises:
            EngineError: the ranks don't agree, or the plugin isn't in them.
            MixedWeightsError: they were started with different patches.
        """
        ranks = await self._engine.reports()
        name, first = ranks[0]
        if first["id"] is None:
            raise EngineError(f"{name}: the plugin did not see this model being loaded")
        for other, report in ranks:
            if (report["id"], report["epoch"]) != (first["id"], first["epoch"]):
                loaded_so = report["epoch"] == first["epoch"]  # Of a swap on its way, ids and epochs differ.
                failure = MixedWeightsError if loaded_so else EngineError
                raise failure(f"{other} serves {report['id']}, {name} serves {first['id']}")
        reasons = [report["cannot_swap"] for _, report in ranks if report["cannot_swap"]]
        return ServedStatus(
            active=first["id"],
            patches=tuple(PatchName(name=patch, id=patch_id) for patch, patch_id in first["patches"]),
            since=iso_time(first["since"]),
            epoch=first["epoch"],
            units=max(report["units"] for _, report in ranks),
            tensors=max(report["tensors"] for _, report in ranks),
            ranks=len(ranks),
            cannot_swap_reason=reasons[0] if reasons else None,
        )

    async def swap(self, patches: PatchSet, *, mode: SwapMode = "keep", if_epoch: int | None = None) -> SwapReport:
        """Replaces the active patches by `patches`, on every rank or on none.

        Args:
            patches: what is to be active; an empty set for the model as it is.
            mode: what becomes of running requests.
            if_epoch: the epoch that the caller saw.

        Raises:
            PatchError, MismatchError, CheckpointError: the patches aren't for this model. Nothing was changed.
            ConflictError: another swap runs, the engine sleeps, or `if_epoch` is stale. Nothing was changed.
            CannotSwapError: this server can't swap. Nothing was changed.
            SwapFailedError: a rank failed; all ranks hold what they held before.
            MixedWeightsError: a rank failed, and not all could be restored; the engine was stopped.
        """
        return await SwapTransaction(self._engine, patches, mode).run(if_epoch)

    async def check(self, patches: PatchSet, *, if_epoch: int | None = None) -> SwapReport:
        """Does everything of a swap that comes before its first write, and tells what the swap would tell.

        Args:
            patches: what would be active.
            if_epoch: the epoch that the caller saw.

        Raises:
            SurgeryError: what `swap` would refuse. Nothing was changed, nor is it otherwise.
        """
        return await SwapTransaction(self._engine, patches, "keep").rehearse(if_epoch)

    async def undo(self, *, mode: SwapMode = "keep", if_epoch: int | None = None) -> SwapReport:
        """Swaps back to the patches that were active before the last swap.

        Args:
            mode: what becomes of running requests.
            if_epoch: the epoch that the caller saw: the one that the swap to be taken back answered with.

        Raises:
            ConflictError: there was no swap, or another came in between. Nothing was changed.
            SurgeryError: as with `swap`.
        """
        (told, *_) = _all_ok(await self._engine.step("before", "", {}))
        if told["patches"] is None:
            raise ConflictError(NOTHING_BEFORE)
        before = PatchSet.from_data(told["patches"])
        return await self.swap(before, mode=mode, if_epoch=told["epoch"] if if_epoch is None else if_epoch)


NOTHING_BEFORE = "there is nothing to take back: no swap since the server was started"


class SwapTransaction:
    """One swap, from its first step to its end."""

    def __init__(self, engine: Engine, patches: PatchSet, mode: SwapMode) -> None:
        self._engine, self._patches, self._mode = engine, patches, mode
        self._token = uuid.uuid4().hex
        self._times = dict.fromkeys(("stage", "pause", "apply", "verify", "total"), 0.0)
        self._held = 0.0
        self._restored = False
        self._verified, self._unverified = 0, Counter[str]()

    async def run(self, if_epoch: int | None) -> SwapReport:
        """Carries the swap out; see `SwapCoordinator.swap`."""
        started = time.perf_counter()
        staged = await self._stage(if_epoch)
        previous, epoch = str(staged[0]["previous"]), int(staged[0]["epoch"])
        if previous == self._patches.id:
            await self._tell("discard")
        else:
            await self._carry_out(previous)
            epoch += 1
        report = self._report(staged, epoch, started)
        logger.info(
            "vllm-surgery: %s in place of %s: %d unit(s) in %d tensor(s), tokens stood still for %.1f ms",
            report.id,
            report.previous,
            report.units,
            report.tensors,
            self._held,
        )
        for each in report.unverified:
            logger.warning("vllm-surgery: %d part(s) were written and not verified: %s", each.parts, each.reason)
        return report

    async def rehearse(self, if_epoch: int | None) -> SwapReport:
        """Stages the swap and drops it; see `SwapCoordinator.check`."""
        started = time.perf_counter()
        staged = await self._stage(if_epoch)
        await self._engine.insist(self._tell("discard"))
        return self._report(staged, int(staged[0]["epoch"]), started)

    def _report(self, staged: Sequence[dict[str, Any]], epoch: int, started: float) -> SwapReport:
        self._times["total"] = _milliseconds_since(started)
        return SwapReport(
            id=self._patches.id,
            previous=str(staged[0]["previous"]),
            epoch=epoch,
            units=max(answer["units"] for answer in staged),
            tensors=max(answer["tensors"] for answer in staged),
            modules=max(answer["modules"] for answer in staged),
            verified=self._verified,
            unverified=[Unverified(parts=parts, reason=reason) for reason, parts in sorted(self._unverified.items())],
            milliseconds=SwapTimes(**self._times),
        )

    async def _stage(self, if_epoch: int | None) -> list[dict[str, Any]]:
        try:
            payload = {"patches": self._patches.to_data(), "if_epoch": if_epoch}
            begun, sleeps = await self._engine.begin(self._token, payload)
            answers = _all_ok(begun)
            # Only now: a swap that runs pauses the engine too, and is refused by the line above.
            if sleeps:
                raise ConflictError("the engine sleeps or was paused; wake it before its patches are swapped")
            wait = FIRST_WAIT_SECONDS
            while not all(answer["done"] for answer in answers):
                await self._engine.wait(wait)
                wait = min(wait * 2, LONGEST_WAIT_SECONDS)
                answers = await self._do("poll")
            self._refuse_uncovered(answers)
        except BaseException:
            await self._engine.insist(self._tell("discard"))
            raise
        self._times["stage"] = max(answer["seconds"] for answer in answers) * 1000
        return answers

    def _refuse_uncovered(self, answers: Sequence[dict[str, Any]]) -> None:
        """Checks that the ranks hold all changed tensors together: with pipeline parallelism each has some layers."""
        covered = {name for answer in answers for name in answer["covered"]}
        missing = [name for name in answers[0]["changed"] if name not in covered]
        if missing:
            raise CannotSwapError(f"{missing[0]} is in the memory of no rank under a name that is known")

    async def _carry_out(self, previous: str) -> None:
        started = time.perf_counter()
        try:
            await self._engine.meanwhile(self._engine.pause(self._mode), self._beat)
            self._times["pause"] = _milliseconds_since(started)
            await self._write()
        except BaseException as error:
            mixed = not await self._undo(previous)
            if not isinstance(error, Exception):
                raise
            if mixed:
                raise MixedWeightsError(
                    f"swap to {self._patches.id} failed and could not be undone, so the engine was stopped: {error}"
                ) from error
            raise SwapFailedError(
                f"swap to {self._patches.id} failed and was undone; {previous} is active: {_reason(error)}"
            ) from error
        await self._engine.insist(self._engine.resume())
        self._held = _milliseconds_since(started)

    async def _undo(self, previous: str) -> bool:
        """Brings the old weights back and lets the engine go on; true if it does.

        Weights count as mixed until it is known that they aren't: whatever interrupts this, an engine with mixed
        weights is stopped and never goes on.
        """
        try:
            await self._engine.insist(self._restore(previous))
        finally:
            await self._engine.insist(self._engine.resume() if self._restored else self._tell("halt"))
        return self._restored

    async def _beat(self) -> None:
        await self._tell("poll")

    async def _write(self) -> None:
        for name in ("apply", "verify"):
            answers = await self._do(name)
            self._times[name] = max(answer["milliseconds"] for answer in answers)
            self._note_verified(answers)
        await self._engine.set_version(self._patches.id)
        await self._do("commit")

    def _note_verified(self, answers: Sequence[dict[str, Any]]) -> None:
        for answer in answers:
            self._verified += answer.get("verified", 0)
            self._unverified.update(answer.get("unverified", {}))

    async def _restore(self, previous: str) -> None:
        """Restores the old weights, and notes that every rank holds them again."""
        try:
            await self._do("restore")
            await self._engine.set_version(previous)
        except Exception as error:
            logger.critical("vllm-surgery: %s could not be restored: %s", previous, _reason(error))
        else:
            self._restored = True

    async def _do(self, name: str) -> list[dict[str, Any]]:
        return _all_ok(await self._engine.step(name, self._token, {}))

    async def _tell(self, name: str) -> None:
        with suppress(Exception):  # A rank that is gone needs no telling.
            await self._engine.step(name, self._token, {})


def _all_ok(answers: Sequence[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Answers of all ranks.

    Raises:
        SurgeryError: one of them failed.
    """
    for rank, answer in answers:
        if not answer["ok"]:
            raise error_of(answer, rank)
    return [answer for _, answer in answers]


def iso_time(seconds: float) -> str:
    """A time in seconds since the epoch as ISO 8601 in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _milliseconds_since(started: float) -> float:
    return (time.perf_counter() - started) * 1000


def _reason(error: BaseException) -> str:
    return str(error) if isinstance(error, SurgeryError) else one_line(f"{type(error).__name__}: {error}")


class Swapper(Protocol):
    """Interface of `SwapCoordinator`, for those who use one."""

    async def status(self) -> ServedStatus:
        """Status of the engine."""

    async def swap(self, patches: PatchSet, *, mode: SwapMode = "keep", if_epoch: int | None = None) -> SwapReport:
        """Replaces the active patches by `patches`."""

    async def check(self, patches: PatchSet, *, if_epoch: int | None = None) -> SwapReport:
        """Tells what `swap` would tell or refuse, and changes nothing."""

    async def undo(self, *, mode: SwapMode = "keep", if_epoch: int | None = None) -> SwapReport:
        """Takes the last change back."""
