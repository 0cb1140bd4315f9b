# SPDX-License-Identifier: Apache-2.0
"""A swap is one transaction: every rank holds the new patches, or every rank the old, or the engine stops."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.models import patch_of
from vllm_surgery import (
    CannotSwapError,
    ConflictError,
    EngineError,
    MismatchError,
    MixedWeightsError,
    Patch,
    PatchSet,
    SwapFailedError,
)
from vllm_surgery.api import patch_set
from vllm_surgery.engine.rpc_errors import failure_of
from vllm_surgery.engine.swap.engines import named, run_sync
from vllm_surgery.engine.swap.transaction import SwapCoordinator

NONE = PatchSet()
FIRST = patch_set(Patch.from_data(patch_of({(0, 0): -1.0}, "first"), "first"))
SECOND = patch_set(Patch.from_data(patch_of({(1, 1): 0.0}, "second"), "second"))


@dataclass
class Rank:
    """A worker that keeps to the protocol, and fails where it is told to."""

    holds: str = "none"
    epoch: int = 0
    fails: dict[str, Exception] = field(default_factory=dict)
    cannot_swap: str | None = None
    covers: bool = True
    slow: int = 0
    staged: str | None = None
    token: str | None = None
    before: str = "none"
    halted: bool = False
    earlier: list[list[Any]] = field(default_factory=list)
    holding: list[Any] = field(default_factory=list)
    asked: list[Any] = field(default_factory=list)
    unverified: dict[str, int] = field(default_factory=dict)

    def step(self, name: str, token: str, payload: dict[str, Any]) -> dict[str, Any]:
        if name in self.fails:
            return failure_of(self.fails[name])
        if name == "before":
            return {"ok": True, "milliseconds": 1.0, **self.before_last()}
        return {"ok": True, "milliseconds": 1.0, **(getattr(self, name)(token, **payload) or {})}

    def begin(self, token: str, patches: list[Any], if_epoch: int | None) -> dict[str, Any]:
        if if_epoch is not None and if_epoch != self.epoch:
            raise ConflictError("the epoch is another")
        self.token, self.staged, self.before = token, PatchSet.from_data(patches).id, self.holds
        self.asked = patches
        return self.poll(token)

    def before_last(self) -> dict[str, Any]:
        return {"patches": self.earlier[-1] if self.earlier else None, "epoch": self.epoch}

    def poll(self, token: str) -> dict[str, Any]:
        self.slow -= 1
        if self.slow >= 0:
            return {"done": False}
        names = ["model.layers.0.mlp.down_proj.weight"]
        counts = {"units": 1, "tensors": 1, "modules": 1, "seconds": 0.001}
        told = {"changed": names, "covered": names if self.covers else []}
        return {"done": True, "previous": self.holds, "epoch": self.epoch, **told, **counts}

    def apply(self, token: str) -> None:
        self.holds = str(self.staged)

    def verify(self, token: str) -> dict[str, Any]:
        return {"verified": 3, "unverified": self.unverified}

    def commit(self, token: str) -> None:
        self.epoch, self.staged = self.epoch + 1, None
        self.earlier, self.holding = [*self.earlier, self.holding], self.asked

    def restore(self, token: str) -> None:
        self.holds, self.staged = self.before, None

    def discard(self, token: str) -> None:
        self.staged = None

    def halt(self, token: str) -> None:
        self.halted = True

    def report(self) -> dict[str, Any]:
        counts = {"units": 1, "tensors": 1, "since": 1_795_528_800.0, "epoch": self.epoch}
        return {"id": self.holds, "patches": [["first", "first@1"]], "cannot_swap": self.cannot_swap, **counts}


class Engine:
    """An engine that notes what it is asked for."""

    def __init__(self, *ranks: Rank, sleeps: bool = False, version_fails: bool = False) -> None:
        self.ranks = ranks or (Rank(), Rank())
        self.calls: list[str] = []
        self.paused = False
        self.version = "none"
        self._sleeps, self._version_fails = sleeps, version_fails

    async def reports(self) -> list[tuple[str, dict[str, Any]]]:
        return named([[rank.report() for rank in self.ranks]])

    async def begin(self, token: str, payload: dict[str, Any]) -> tuple[list[tuple[str, dict[str, Any]]], bool]:
        return await self.step("begin", token, payload), self._sleeps

    async def step(self, name: str, token: str, payload: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        self.calls.append(name)
        return named([[rank.step(name, token, payload) for rank in self.ranks]])

    async def insist(self, work: Any) -> Any:
        return await work

    async def meanwhile(self, work: Any, beat: Any) -> Any:
        return await work

    async def pause(self, mode: str) -> None:
        self.calls.append(f"pause {mode}")
        self.paused = True

    async def resume(self) -> None:
        self.calls.append("resume")
        self.paused = False

    async def set_version(self, patch_id: str) -> None:
        if self._version_fails and patch_id != "none":
            raise RuntimeError("no such call")
        self.version = patch_id

    async def wait(self, seconds: float) -> None:
        self.calls.append("wait")


def swap(engine: Engine, patches: PatchSet, **options: Any) -> Any:
    return run_sync(SwapCoordinator(engine).swap(patches, **options))


def test_a_swap_goes_step_by_step() -> None:
    engine = Engine()
    report = swap(engine, FIRST, mode="wait")
    assert engine.calls == ["begin", "pause wait", "apply", "verify", "commit", "resume"]
    assert (report.id, report.previous, report.epoch) == (FIRST.id, "none", 1)
    assert [rank.holds for rank in engine.ranks] == [FIRST.id] * 2
    assert engine.version == FIRST.id


def test_a_swap_says_what_it_verified_and_what_not() -> None:
    engine = Engine(Rank(unverified={"no kernel": 2, "elsewhere": 1}), Rank(unverified={"no kernel": 1}))
    report = swap(engine, FIRST)
    assert report.verified == 6
    assert [(each.parts, each.reason) for each in report.unverified] == [(1, "elsewhere"), (3, "no kernel")]


def test_nothing_is_paused_while_a_rank_stages() -> None:
    engine = Engine(Rank(slow=2), Rank())
    swap(engine, FIRST)
    assert engine.calls[:6] == ["begin", "wait", "poll", "wait", "poll", "pause keep"]


def test_what_is_active_already_costs_no_pause() -> None:
    engine = Engine()
    swap(engine, FIRST)
    engine.calls.clear()
    report = swap(engine, FIRST)
    assert engine.calls == ["begin", "discard"]
    assert (report.id, report.previous, report.epoch) == (FIRST.id, FIRST.id, 1)


REFUSALS = [
    (MismatchError("first", "edits[0]", "layer 9 is out of range"), "^first: edits\\[0\\]: layer 9 is out of range$"),
    (ConflictError("another swap is running"), "^another swap is running$"),
    (CannotSwapError("the checkpoint is gone"), "^the checkpoint is gone$"),
]


@pytest.mark.parametrize("step", ["begin", "poll"])
@pytest.mark.parametrize(("refusal", "message"), REFUSALS, ids=lambda value: type(value).__name__)
def test_a_rank_that_refuses_stops_the_swap_before_the_pause(step: str, refusal: Exception, message: str) -> None:
    engine = Engine(Rank(slow=1), Rank(fails={step: refusal}))
    with pytest.raises(type(refusal), match=message):
        swap(engine, FIRST)
    assert engine.calls[-1] == "discard"
    assert not any(call.startswith("pause") for call in engine.calls)
    assert [rank.holds for rank in engine.ranks] == ["none", "none"]


def test_a_machine_that_fails_while_staging_is_named() -> None:
    with pytest.raises(EngineError, match=r"^rank 1: OSError: disk on fire$"):
        swap(Engine(Rank(slow=1), Rank(fails={"poll": OSError("disk on fire")})), FIRST)


def test_a_tensor_that_no_rank_holds_stops_the_swap() -> None:
    engine = Engine(Rank(covers=False), Rank(covers=False))
    with pytest.raises(CannotSwapError, match=r"^model\.layers\.0\.mlp\.down_proj\.weight is in the memory of no rank"):
        swap(engine, FIRST)
    assert engine.calls == ["begin", "discard"]


def test_with_pipeline_parallelism_one_rank_may_hold_it() -> None:
    assert swap(Engine(Rank(covers=False), Rank()), FIRST).id == FIRST.id


@pytest.mark.parametrize("step", ["apply", "verify", "commit"])
def test_a_rank_that_fails_brings_all_ranks_back(step: str) -> None:
    engine = Engine(Rank(holds=SECOND.id), Rank(holds=SECOND.id, fails={step: RuntimeError("out of memory")}))
    with pytest.raises(SwapFailedError) as failed:
        swap(engine, FIRST)
    assert str(failed.value) == (
        f"swap to {FIRST.id} failed and was undone; {SECOND.id} is active: rank 1: RuntimeError: out of memory"
    )
    assert [rank.holds for rank in engine.ranks] == [SECOND.id] * 2
    assert engine.version == SECOND.id
    assert engine.calls[-2:] == ["restore", "resume"]


def test_a_version_that_can_not_be_set_brings_all_ranks_back() -> None:
    engine = Engine(version_fails=True)
    with pytest.raises(SwapFailedError, match="RuntimeError: no such call"):
        swap(engine, FIRST)
    assert [rank.holds for rank in engine.ranks] == ["none", "none"]
    assert not engine.paused


def test_a_rank_that_can_not_be_brought_back_stops_the_engine() -> None:
    broken = {"apply": RuntimeError("first"), "restore": RuntimeError("second")}
    engine = Engine(Rank(), Rank(fails=broken))
    with pytest.raises(MixedWeightsError, match=r"failed and could not be undone, so the engine was stopped: .*first"):
        swap(engine, FIRST)
    assert all(rank.halted for rank in engine.ranks)
    assert engine.paused, "an engine with mixed weights must not go on"


def test_a_cancelled_swap_is_undone() -> None:
    async def cancelled() -> Engine:
        engine = Engine()

        async def pause(mode: str) -> None:
            raise asyncio.CancelledError

        engine.pause = pause
        with pytest.raises(asyncio.CancelledError):
            await SwapCoordinator(engine).swap(FIRST)
        return engine

    engine = run_sync(cancelled())
    assert engine.calls[-2:] == ["restore", "resume"]


class Interrupted(Engine):
    """An engine whose leader is interrupted at some steps, before or after the ranks have carried them out."""

    def __init__(self, before: set[str], after: set[str], kind: type[BaseException]) -> None:
        super().__init__()
        self.before, self.after, self.kind = before, after, kind

    async def step(self, name: str, token: str, payload: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        if name in self.before:
            raise self.kind
        answers = await super().step(name, token, payload)
        if name in self.after:
            raise self.kind
        return answers


@pytest.mark.parametrize("kind", [KeyboardInterrupt, asyncio.CancelledError])
@pytest.mark.parametrize("restore", ["before", "after"])
def test_a_second_interrupt_while_a_swap_is_undone_never_lets_mixed_weights_go_on(
    kind: type[BaseException], restore: str
) -> None:
    at = {"before": set[str](), "after": {"apply"}}
    at[restore].add("restore")
    engine = Interrupted(**at, kind=kind)
    with pytest.raises(kind):
        swap(engine, FIRST)
    assert all(rank.halted for rank in engine.ranks)
    assert engine.paused


def test_a_cancelled_swap_whose_undo_fails_stops_the_engine() -> None:
    engine = Interrupted(set(), {"apply"}, asyncio.CancelledError)
    engine.ranks[1].fails["restore"] = RuntimeError("second")
    with pytest.raises(asyncio.CancelledError):
        swap(engine, FIRST)
    assert all(rank.halted for rank in engine.ranks)
    assert engine.paused


def test_an_engine_that_sleeps_is_not_touched() -> None:
    engine = Engine(sleeps=True)
    with pytest.raises(
        ConflictError, match=r"^the engine sleeps or was paused; wake it before its patches are swapped$"
    ):
        swap(engine, FIRST)
    assert engine.calls == ["begin", "discard"]


def test_the_status_is_that_of_all_ranks() -> None:
    status = run_sync(SwapCoordinator(Engine(Rank(holds=FIRST.id), Rank(holds=FIRST.id))).status())
    assert (status.active, status.ranks, status.epoch) == (FIRST.id, 2, 0)
    assert status.since == "2026-11-24T14:00:00.000+00:00"
    assert status.cannot_swap_reason is None


def test_the_status_says_why_swaps_are_impossible() -> None:
    engine = Engine(Rank(), Rank(cannot_swap="the checkpoint is gone"))
    assert run_sync(SwapCoordinator(engine).status()).cannot_swap_reason == "the checkpoint is gone"


def test_ranks_that_disagree_are_an_error() -> None:
    with pytest.raises(EngineError, match=f"^rank 1 serves none, rank 0 serves {FIRST.id}$"):
        run_sync(SwapCoordinator(Engine(Rank(holds=FIRST.id, epoch=1), Rank())).status())


def test_ranks_that_were_started_with_different_patches_are_mixed_weights() -> None:
    with pytest.raises(MixedWeightsError, match=f"^rank 1 serves none, rank 0 serves {FIRST.id}$"):
        run_sync(SwapCoordinator(Engine(Rank(holds=FIRST.id), Rank())).status())


def test_every_engine_of_a_data_parallel_server_has_its_own_ranks() -> None:
    names = [name for name, _ in named([[{}, {}], [{}, {}]])]
    assert names == ["engine 0, rank 0", "engine 0, rank 1", "engine 1, rank 0", "engine 1, rank 1"]


def test_work_that_waits_is_refused_offline() -> None:
    with pytest.raises(RuntimeError, match="the coroutine waited for something"):
        run_sync(asyncio.sleep(0))


# Checks, and changes that are taken back.


def test_a_check_stages_and_writes_nothing() -> None:
    engine = Engine()
    report = run_sync(SwapCoordinator(engine).check(FIRST, if_epoch=0))
    assert engine.calls == ["begin", "discard"]
    assert (report.id, report.previous, report.epoch, report.units) == (FIRST.id, "none", 0, 1)
    assert [(rank.holds, rank.staged) for rank in engine.ranks] == [("none", None)] * 2


def test_a_check_refuses_what_the_swap_would() -> None:
    engine = Engine(Rank(), Rank(fails={"begin": MismatchError("first", "", "is for another model")}))
    with pytest.raises(MismatchError, match="another model"):
        run_sync(SwapCoordinator(engine).check(FIRST))
    assert engine.calls == ["begin", "discard"]


def test_what_was_active_before_comes_back() -> None:
    engine = Engine()
    swap(engine, FIRST)
    report = swap(engine, SECOND)
    taken_back = run_sync(SwapCoordinator(engine).undo(if_epoch=report.epoch))
    assert (taken_back.id, taken_back.previous, taken_back.epoch) == (FIRST.id, SECOND.id, 3)
    assert run_sync(SwapCoordinator(engine).undo()).id == SECOND.id, "that was a swap too"


def test_before_the_first_swap_there_is_nothing_to_take_back() -> None:
    with pytest.raises(ConflictError, match=r"^there is nothing to take back: no swap since the server was started$"):
        run_sync(SwapCoordinator(Engine()).undo())


def test_a_swap_that_another_followed_is_not_taken_back() -> None:
    engine = Engine()
    swap(engine, FIRST)
    swap(engine, SECOND)
    with pytest.raises(ConflictError, match="the epoch is another"):
        run_sync(SwapCoordinator(engine).undo(if_epoch=1))
    assert {rank.holds for rank in engine.ranks} == {SECOND.id}
