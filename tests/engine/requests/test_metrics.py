# SPDX-License-Identifier: Apache-2.0
"""The slots on ``/metrics``: shown whenever they are known, however they were changed."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from tests.engine.requests.test_ledger import Engine, fill
from tests.engine.requests.test_swapper import Served
from vllm_surgery.engine.metrics import Metrics
from vllm_surgery.engine.requests.board import Board
from vllm_surgery.engine.requests.choice import Offer
from vllm_surgery.engine.requests.leader import SlotLeader
from vllm_surgery.engine.requests.ledger import Change, Ledger
from vllm_surgery.engine.requests.metrics import SlotGauge
from vllm_surgery.engine.swap.engines import run_sync


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
