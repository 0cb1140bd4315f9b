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


def refusal(work: Any) -> str:
    with pytest.raises(ConflictError) as refused:
        run_sync(work)
    return str(refused.value)


@pytest.mark.parametrize("engines", [1, 2])
def test_nobody_else_changes_anything_during_a_promotion(engines: int, monkeypatch: pytest.MonkeyPatch) -> None:
    here = slots(engines)
    here.swap(A)
    refused: list[str] = []
    begin = here.served.begin

    async def interrupted(token: str, payload: dict[str, Any]) -> Any:
        other = SlotSwapper(here.served, SlotLeader(here.served, Board(here.board.offer())), plan)
        for work in (
            other.swap(B), other.swap(PatchSet()), other.promote(), other.undo(), other.check(B), other.share(B, 0.5),
            other.change((B,)), other.change(free=["a"], shares={"none": 1.0}),
        ):  # fmt: skip
            refused.append(refusal(work))
        return await begin(token, payload)

    monkeypatch.setattr(here.served, "begin", interrupted)
    assert promote(here).id == here.served.weights == here.status().active == A.id
    assert refused == ["another swap is running"] * 8
    assert [ledger.offer.names for ledger in here.served.ledgers] == [["a"]] * engines
    monkeypatch.setattr(here.served, "begin", begin)
    assert here.swap(B).previous == A.id, "nothing is held up afterwards"


def test_a_long_promotion_keeps_the_slots_to_itself(one: Slots, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm_surgery.engine.requests.promotion.LEASE_SECONDS", 0.0)
    one.swap(A)
    begin, step, staged = one.served.begin, one.served.step, list[Any]()

    async def staged_later(token: str, payload: dict[str, Any]) -> Any:
        answers, sleeps = await begin(token, payload)
        staged.extend(answers)
        return [(rank, {**answer, "done": False}) for rank, answer in answers], sleeps

    async def polled(name: str, token: str, payload: dict[str, Any]) -> Any:
        return staged if name == "poll" else await step(name, token, payload)

    async def waits(_seconds: float) -> None:
        one.served.asked.append("wait")

    for name, stand_in in (("begin", staged_later), ("step", polled), ("wait", waits)):
        monkeypatch.setattr(one.served, name, stand_in)
    promote(one)
    assert one.served.asked[one.served.asked.index("wait") :][:2] == ["wait", "claim"]
    assert one.served.asked[-1] == "release"


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


# Checks, shares, and changes that are taken back.

OTHER_A = patches_of(zero({"1": [7]}), name="a")
C = patches_of(zero({"2": [2]}), name="c")


def share(here: Slots, patches: PatchSet, part: float, **more: Any) -> Any:
    return run_sync(here.swapper.share(patches, part, **more))


def undo(here: Slots, **more: Any) -> Any:
    return run_sync(here.swapper.undo(**more))


def default(here: Slots) -> dict[str, float]:
    return dict(here.board.offer().shares)


@pytest.mark.parametrize("engines", [1, 2])
def test_a_check_fills_what_nobody_can_choose(engines: int) -> None:
    here = slots(engines)
    here.swap(B)
    report = run_sync(here.swapper.check(A, if_epoch=1))
    assert (report.id, report.previous, report.epoch, report.units) == (A.id, B.id, 1, 1)
    assert (here.status().active, here.board.offer().names) == (B.id, ["none", "b"])
    assert here.swap(A, if_epoch=1).epoch == 2


def test_a_check_refuses_what_the_swap_would(one: Slots) -> None:
    with pytest.raises(ConflictError, match="the epoch is 0, not 4"):
        run_sync(one.swapper.check(A, if_epoch=4))
    one.change(B, C)
    with pytest.raises(ConflictError, match="all 2 slots are in use"):
        run_sync(one.swapper.check(A))
    assert one.swap(B).epoch == 2, "nothing is held up by what was refused"


def test_a_check_of_nothing_is_one_too(one: Slots) -> None:
    one.swap(A)
    assert run_sync(one.swapper.check(PatchSet())).units == 0
    assert one.status().active == A.id


def test_a_promoted_patch_does_not_keep_a_check_from_its_answer(one: Slots) -> None:
    one.swap(A)
    promote(one)
    assert run_sync(one.swapper.check(B)).previous == A.id


def test_a_change_can_be_checked(one: Slots) -> None:
    report = one.change(A, shares={"a": 0.5, "none": 0.5}, check=True)
    assert (report.epoch, one.board.offer().names) == (0, ["none"])
    with pytest.raises(UsageError, match="no slot holds a patch named 'b'"):
        one.change(shares={"b": 1.0}, check=True)


def test_a_share_of_requests_gets_a_patch_and_the_others_what_they_got(one: Slots) -> None:
    one.swap(B)
    report = share(one, A, 0.25)
    assert (report.id, report.previous, report.epoch) == (SHARED, B.id, 2)
    assert default(one) == {"a": 0.25, "b": 0.75}
    share(one, A, 0.5)
    assert default(one) == {"a": 0.5, "b": 0.5}


def test_a_share_can_be_checked(one: Slots) -> None:
    share(one, A, 0.25, check=True)
    assert (default(one), one.status().epoch) == ({"none": 1.0}, 0)


def test_a_patch_that_had_a_share_leaves_with_the_next_swap(one: Slots) -> None:
    share(one, A, 0.25)
    one.swap(B)
    assert one.board.offer().names == ["none", "b"]


@pytest.mark.parametrize(
    ("patches", "said"),
    [
        (
            OTHER_A,
            f"share: {A.id} has that name already, and requests tell patches by name; call one of them otherwise",
        ),
        (A, f"share: {A.id} is all of the default, so there is nothing to share"),
    ],
)
def test_what_can_have_no_share(one: Slots, patches: PatchSet, said: str) -> None:
    one.swap(A)
    with pytest.raises(UsageError) as refused:
        share(one, patches, 0.5)
    assert (str(refused.value), default(one)) == (said, {"a": 1.0})


@pytest.mark.parametrize("engines", [1, 2])
def test_a_swap_is_taken_back_though_its_slot_was_given_away(engines: int) -> None:
    here = slots(engines)
    here.swap(A)
    changed = here.swap(B)
    run_sync(here.swapper.check(C))  # Takes the slot that A has left.
    report = undo(here, if_epoch=changed.epoch)
    assert (report.id, report.previous, here.status().active) == (A.id, B.id, A.id)
    assert here.board.offer().names == ["none", "a"]


def test_shares_are_taken_back(one: Slots) -> None:
    one.change(B)
    share(one, A, 0.25)
    undo(one)
    assert (one.board.offer().names, default(one)) == (["none", "b"], {"none": 1.0})
    one.swap(A)
    assert "b" in one.board.offer().names, "what was filled to be chosen still is"


def test_what_a_swap_brought_still_leaves_after_it_was_taken_back(one: Slots) -> None:
    one.swap(A)
    one.change(A)  # From now on it would stay.
    undo(one)
    one.swap(B)
    assert one.board.offer().names == ["none", "b"]


def test_there_is_nothing_to_take_back_before_the_first_change(one: Slots) -> None:
    with pytest.raises(ConflictError, match=r"^there is nothing to take back: no swap since the server was started$"):
        undo(one)


def test_a_change_that_another_followed_is_not_taken_back(one: Slots) -> None:
    one.swap(A)
    one.swap(B)
    with pytest.raises(ConflictError, match="the epoch is 2, not 1"):
        undo(one, if_epoch=1)


def test_a_swap_away_from_a_promoted_patch_is_taken_back_into_its_slot(one: Slots) -> None:
    one.swap(A)
    promote(one)
    one.swap(B)
    undo(one)
    assert (one.status().active, one.board.offer().names) == (A.id, ["none", "a"])


def test_a_promotion_is_not_taken_back_by_its_slots(one: Slots) -> None:
    one.swap(A)
    promote(one)
    with pytest.raises(ConflictError, match="swap to none before slots are changed"):
        undo(one)
