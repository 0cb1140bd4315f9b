# SPDX-License-Identifier: Apache-2.0
"""Swaps by slots on one engine or several, and promotions: whole or not at all, and what they tell."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.engine.requests.test_ledger import Engine, fill
from tests.examples import patches_of, zero
from vllm_surgery import ConflictError, PatchSet, UsageError
from vllm_surgery.engine.requests.admission import offered
from vllm_surgery.engine.requests.board import Board
from vllm_surgery.engine.requests.choice import Offer
from vllm_surgery.engine.requests.leader import SlotLeader
from vllm_surgery.engine.requests.ledger import Fill, Ledger
from vllm_surgery.engine.requests.swapper import SHARED, SlotSwapper
from vllm_surgery.engine.swap.engines import run_sync
from vllm_surgery.errors import SwapFailedError

A = patches_of(zero({"1": [2]}), name="a")
B = patches_of(zero({"3": [4]}), name="b")


@dataclass
class Served:
    """Engines with slots of their own, whose ranks can also swap weights.

    Attributes:
        ledgers: one an engine.
        weights: the id of what the weights hold.
        log: what happened to the weights, in order.
        fails: the step of a swap that fails.
        asked: of the ledgers, in order.
    """

    ledgers: list[Ledger]
    weights: str = "none"
    wanted: str = "none"
    log: list[str] = field(default_factory=list)
    fails: str | None = None
    asked: list[str] = field(default_factory=list)

    @property
    def alone(self) -> bool:
        return len(self.ledgers) == 1

    async def ledger(self, step: str, token: str, payload: dict[str, Any]) -> list[dict[str, Any]]:
        self.asked.append(step)
        if step == "hold":
            self.log.append(f"hold {payload['digest'][:2]}")
        return [ledger.answer(step, token, payload) for ledger in self.ledgers]

    async def reports(self) -> list[tuple[str, dict[str, Any]]]:
        report = {"id": self.weights, "patches": [], "since": 0.0, "epoch": 0, "units": 1, "tensors": 1}
        return [(f"rank {rank}", {**report, "cannot_swap": None}) for rank in range(2)]

    async def begin(self, token: str, payload: dict[str, Any]) -> tuple[list[tuple[str, dict[str, Any]]], bool]:
        self.wanted = PatchSet.from_data(payload["patches"]).id
        told = {"previous": self.weights, "epoch": 0, "units": 1, "tensors": 1, "modules": 1, "seconds": 0.0}
        return [("rank 0", {"ok": True, "done": True, "changed": [], "covered": [], **told})], False

    async def step(self, name: str, token: str, payload: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        self.log.append(name)
        if name == self.fails:
            return [("rank 0", {"ok": False, "kind": "EngineError", "error": "broken"})]
        if name == "commit":
            self.weights = self.wanted
        return [("rank 0", {"ok": True, "milliseconds": 1.0})]

    async def insist(self, work: Any) -> Any:
        return await work

    async def meanwhile(self, work: Any, beat: Any) -> Any:
        return await work

    async def pause(self, mode: str) -> None:
        self.log.append("pause")

    async def resume(self) -> None:
        self.log.append("resume")

    async def set_version(self, patch_id: str) -> None:
        self.log.append(f"version {patch_id.partition('@')[0]}")

    async def wait(self, seconds: float) -> None:
        raise AssertionError("nothing is staged in the background here")


async def plan(patches: PatchSet, kept: bool) -> Fill:
    planned, item = fill("planned", kept=kept), offered(patches)
    content = {**planned.content, "id": item.id, "digest": item.digest}
    return Fill(item, content, kept, patches.to_data())


@dataclass
class Slots:
    """A swapper, and the engines behind it."""

    served: Served
    ranks: list[Engine]
    board: Board
    swapper: SlotSwapper

    def swap(self, patches: PatchSet, **more: Any) -> Any:
        return run_sync(self.swapper.swap(patches, **more))

    def change(self, *patches: PatchSet, **more: Any) -> Any:
        return run_sync(self.swapper.change(patches, **more))

    def status(self) -> Any:
        return run_sync(self.swapper.status())


def slots(engines: int = 1, count: int = 2) -> Slots:
    ranks = [Engine() for _ in range(engines)]
    served = Served([Ledger(count, rank.call, lambda rank=rank: rank.running) for rank in ranks])  # type: ignore[misc]
    for ledger, rank in zip(served.ledgers, ranks, strict=True):
        ledger.call = _calls(rank)
    board = Board(Offer())
    return Slots(served, ranks, board, SlotSwapper(served, SlotLeader(served, board), plan))


def _calls(rank: Engine) -> Any:
    """Filling a slot is the ranks'; that weights hold something is only heard."""
    return lambda method, *args: [{"ok": True}] if method.endswith("hold") else rank.call(method, *args)


@pytest.fixture
def one() -> Slots:
    return slots()


def test_a_swap_moves_the_default_and_no_weight(one: Slots) -> None:
    report = one.swap(A)
    assert (report.id, report.previous, report.epoch, report.tensors) == (A.id, "none", 1, 0)
    assert report.milliseconds.pause == report.milliseconds.verify == 0
    assert one.served.log == []
    assert one.status().active == one.board.offer().default("anybody").id == A.id


def test_a_swap_asks_one_engine_once_and_several_twice() -> None:
    for engines, asked in ((1, ["change"]), (2, ["prepare", "commit"])):
        here = slots(engines)
        here.swap(A)
        assert here.served.asked == asked
        here.swap(B)
        assert here.served.asked == asked * 2


def test_a_swap_tells_what_was_the_default_although_another_process_changed_it(one: Slots) -> None:
    one.swap(A)
    elsewhere = SlotSwapper(one.served, SlotLeader(one.served, Board(Offer())), plan)
    report = run_sync(elsewhere.swap(B))
    assert (report.id, report.previous, report.epoch) == (B.id, A.id, 2)


def test_a_swap_to_nothing_is_not_taken_for_done_where_another_process_swapped(one: Slots) -> None:
    one.swap(A)
    elsewhere = SlotSwapper(one.served, SlotLeader(one.served, Board(Offer())), plan)
    assert run_sync(elsewhere.swap(PatchSet())).previous == A.id
    assert one.status().active == "none"


def test_a_swap_to_what_is_the_default_changes_nothing(one: Slots) -> None:
    one.swap(A)
    assert (one.swap(A).epoch, one.swap(A).previous) == (1, A.id)
    with pytest.raises(ConflictError, match="the epoch is 1, not 0"):
        one.swap(A, if_epoch=0)


def test_a_swap_to_nothing_leaves_requests_unpatched(one: Slots) -> None:
    one.swap(A)
    assert (one.swap(PatchSet()).id, one.status().patches) == ("none", ())


def test_several_patches_are_one_choice(one: Slots) -> None:
    both = PatchSet((*A.members, *B.members))
    one.swap(both)
    assert one.board.offer().names == ["none", "a+b"]
    assert [(item.name, item.id) for item in one.status().patches] == [("a", A.id), ("b", B.id)]


def test_shares_are_told_as_such(one: Slots) -> None:
    report = one.change(A, B, shares={"a": 0.25, "none": 0.75})
    assert (one.status().active, one.status().patches) == (SHARED, ())
    assert report.slots.default == {"a": 0.25, "none": 0.75}
    assert [patch.id for patch in report.slots.patches] == [A.id, B.id]


def test_all_engines_of_a_server_change_together() -> None:
    two = slots(engines=2)
    two.swap(A)
    assert [ledger.offer.default("x").id for ledger in two.served.ledgers] == [A.id] * 2
    two.ranks[0].running = two.ranks[1].running = [offered(A).digest]
    assert run_sync(two.swapper.slots()).patches[0].users == 2


def test_what_one_engine_refuses_none_has() -> None:
    two = slots(engines=2)
    two.ranks[1].refuses = offered(A).digest
    with pytest.raises(Exception, match="no place"):
        two.swap(A)
    assert [ledger.offer for ledger in two.served.ledgers] == [Offer(), Offer()]
    assert two.board.offer() == Offer()
    assert two.swap(B).epoch == 1, "nothing is held up by what failed"


def test_engines_that_differ_are_in_the_middle_of_a_change() -> None:
    two = slots(engines=2)
    two.served.ledgers[0].offer = Offer(epoch=1)
    with pytest.raises(ConflictError, match="another swap is running"):
        two.status()


# Promotions.


def promote(here: Slots) -> Any:
    return run_sync(here.swapper.promote())


def test_a_promotion_writes_the_default_and_then_its_slot_rests(one: Slots) -> None:
    one.swap(A)
    report = promote(one)
    assert (report.id, report.previous, one.status().active) == (A.id, "none", A.id)
    digest = offered(A).digest
    assert one.served.log == ["pause", "apply", "verify", "version a", "commit", f"hold {digest[:2]}", "resume"]
    assert one.board.offer().names == ["a"]


def test_the_next_swap_takes_it_out_of_the_weights_first(one: Slots) -> None:
    one.swap(A)
    promote(one)
    one.served.log.clear()
    report = one.swap(B)
    assert (report.id, report.previous) == (B.id, A.id)
    assert one.served.log == ["pause", "apply", "verify", "version none", "commit", "hold ", "resume"]
    assert one.board.offer().names == ["none", "b"]


def test_slots_stay_as_they_are_while_the_weights_hold_a_patch(one: Slots) -> None:
    one.swap(A)
    promote(one)
    with pytest.raises(ConflictError, match="swap to none before slots are changed"):
        one.change(B)


def test_a_promotion_that_fails_leaves_everything_as_it_was(one: Slots) -> None:
    one.swap(A)
    one.served.fails = "verify"
    with pytest.raises(SwapFailedError, match="none is active"):
        promote(one)
    assert one.served.log[-4:] == ["hold ", "restore", "version none", "resume"]
    assert one.board.offer().names == ["none", "a"]


@pytest.mark.parametrize(
    ("running", "said"),
    [([""], r"1 request\(s\) run or wait without a@"), (["", ""], r"2 request\(s\) run or wait without a@")],
)
def test_a_promotion_waits_for_nobody(one: Slots, running: list[str], said: str) -> None:
    one.swap(A)
    one.ranks[0].running = running
    with pytest.raises(ConflictError, match=said):
        promote(one)
    assert one.served.log == []
    assert one.board.offer().unpatched


def test_requests_under_the_default_are_no_hindrance(one: Slots) -> None:
    one.swap(A)
    one.ranks[0].running = [offered(A).digest]
    assert promote(one).id == A.id


def test_what_cannot_be_promoted_is_refused(one: Slots) -> None:
    with pytest.raises(UsageError, match="promote: the default is no patch"):
        promote(one)
    one.change(A, B, shares={"a": 0.5, "none": 0.5})
    with pytest.raises(UsageError, match="promote: the default is drawn"):
        promote(one)
    one.change(shares={"a": 1.0})
    with pytest.raises(ConflictError, match="free b first"):
        promote(one)
