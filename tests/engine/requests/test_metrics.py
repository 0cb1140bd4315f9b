# SPDX-License-Identifier: Apache-2.0
"""The slots on ``/metrics``: shown whenever they are known, however they were changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry

from tests.engine.requests.test_ledger import Engine, fill
from tests.engine.requests.test_swapper import A, B, Served, slots
from vllm_surgery.engine.metrics import Metrics
from vllm_surgery.engine.requests.board import Board
from vllm_surgery.engine.requests.choice import Offer
from vllm_surgery.engine.requests.leader import SlotLeader
from vllm_surgery.engine.requests.ledger import Change, Ledger
from vllm_surgery.engine.requests.metrics import InstrumentedSlots, SlotGauge
from vllm_surgery.engine.requests.swapper import SHARED
from vllm_surgery.engine.swap.engines import run_sync
from vllm_surgery.errors import SurgeryError

if TYPE_CHECKING:
    from collections.abc import Callable


class Measured:
    """A server of two slots, and the registry that shows them."""

    def __init__(self) -> None:
        self.registry, self.ranks = CollectorRegistry(), Engine()
        served = Served([Ledger(2, self.ranks.call, lambda: self.ranks.running)])
        gauge = SlotGauge(Metrics(self.registry), "model")
        self.leader = SlotLeader(served, Board(Offer()), gauge.show)

    def change(self, change: Change) -> None:
        run_sync(self.leader.change(change))

    @property
    def shown(self) -> tuple[float | None, ...]:
        """How many are used, and how many free."""
        labels = [{"model_name": "model", "state": state} for state in ("used", "free")]
        return tuple(self.registry.get_sample_value("vllm_surgery_slots", each) for each in labels)


@pytest.fixture
def measured() -> Measured:
    return Measured()


def test_a_look_shows_slots_that_nobody_changed(measured: Measured) -> None:
    run_sync(measured.leader.state())
    assert measured.shown == (0, 2)


def test_a_fill_and_a_free_are_shown(measured: Measured) -> None:
    measured.change(Change((fill("a"), fill("b"))))
    assert measured.shown == (2, 0)
    measured.ranks.running = ["digest of a"]
    measured.change(Change(free=("a",)))
    assert measured.shown == (1, 1), "requests that still end under it don't count"


def test_one_patch_of_two_names_has_one_slot(measured: Measured) -> None:
    measured.change(Change((fill("a"), fill("b", digest="digest of a"))))
    assert measured.shown == (1, 1)


def test_a_thousand_patches_are_two_series(measured: Measured) -> None:
    for number in range(1_000):
        measured.change(Change((fill(f"p{number}", kept=False),), shares={f"p{number}": 1.0}))
    assert len([line for family in measured.registry.collect() for line in family.samples]) == 2


class Shown:
    """Slots whose changes are counted, and the registry that shows them."""

    def __init__(self) -> None:
        self.registry, self.here = CollectorRegistry(), slots(count=3)
        self.swapper = InstrumentedSlots(self.here.swapper, Metrics(self.registry, removable=True), "model")

    @property
    def active(self) -> list[str]:
        return [patch for patch in ("none", A.id, B.id, SHARED) if self._info(patch)]

    def _info(self, patch: str) -> float | None:
        labels = {"model_name": "model", "patch": patch, "state": "active"}
        return self.registry.get_sample_value("vllm_surgery_patch_info", labels)

    def swaps(self, patch: str, result: str) -> float:
        labels = {"model_name": "model", "patch": patch, "result": result}
        return self.registry.get_sample_value("vllm_surgery_swaps_total", labels) or 0.0


def test_a_default_that_is_set_is_a_swap_and_is_shown() -> None:
    shown = Shown()
    run_sync(shown.swapper.swap(A))
    run_sync(shown.swapper.change((B,)))
    assert shown.active == [A.id], "a fill alone changes no default"
    run_sync(shown.swapper.change(shares={"b": 1.0}, check=True))
    assert (shown.active, shown.swaps(B.id, "done")) == ([A.id], 0)
    run_sync(shown.swapper.change(shares={"b": 1.0}))
    assert (shown.active, shown.swaps(B.id, "done")) == ([B.id], 1)
    run_sync(shown.swapper.change(shares={"b": 1.0}))
    assert shown.swaps(B.id, "unchanged") == 1
    run_sync(shown.swapper.change((A,), shares={"none": 0.5, "a": 0.5}))
    assert shown.active == [SHARED]
    run_sync(shown.swapper.change(shares={"none": 1.0}))
    assert shown.active == ["none"]


def test_a_share_and_a_promotion_are_swaps() -> None:
    shown = Shown()
    run_sync(shown.swapper.share(A, 0.5, check=True))
    assert (shown.active, shown.swaps(SHARED, "done")) == ([], 0)
    run_sync(shown.swapper.share(A, 0.5))
    assert (shown.active, shown.swaps(SHARED, "done")) == ([SHARED], 1)
    run_sync(shown.swapper.change(shares={"a": 1.0}))
    run_sync(shown.swapper.promote())
    assert (shown.active, shown.swaps(A.id, "done")) == ([A.id], 2)


def _refused_default(shown: Shown) -> None:
    run_sync(shown.swapper.change(shares={"absent": 1.0}))


def _broken_promotion(shown: Shown) -> None:
    shown.here.served.fails = "verify"
    run_sync(shown.swapper.promote())


@pytest.mark.parametrize(
    ("change", "label", "result"),
    [(_refused_default, "refused", "refused"), (_broken_promotion, "refused", "undone")],
)
def test_what_fails_is_counted_and_changes_nothing(change: Callable[[Shown], None], label: str, result: str) -> None:
    shown = Shown()
    run_sync(shown.swapper.swap(A))
    with pytest.raises(SurgeryError):
        change(shown)
    assert (shown.active, shown.swaps(label, result)) == ([A.id], 1)
