# SPDX-License-Identifier: Apache-2.0
"""The figures of a scrape, from the plugin's own metrics, so that a renamed one is noticed here."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, generate_latest

from tests.examples import refusal
from vllm_surgery.client.protocol import SwapReport, SwapTimes
from vllm_surgery.client.traffic import LoopCounts, PatchTraffic, Swaps, Traffic, rate_of
from vllm_surgery.engine.metrics import Metrics
from vllm_surgery.engine.monitoring.metrics import LoopMetrics
from vllm_surgery.engine.monitoring.request import WatchedAnswer
from vllm_surgery.engine.swap.metrics import InstrumentedSwapper
from vllm_surgery.errors import ConflictError, UsageError
from vllm_surgery.intervals import Estimate
from vllm_surgery.loops import KINDS, Loop
from vllm_surgery.patch.patch_set import PatchSet

if TYPE_CHECKING:
    from vllm_surgery.loops import Kind, Outcome

COUNTS = st.integers(0, 10_000)


class Server:
    """The metrics of a server, driven by hand.

    Attributes:
        loops: where answers are counted.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.metrics = Metrics(self._registry)
        self.loops = LoopMetrics(self.metrics, "demo")

    @property
    def traffic(self) -> Traffic:
        return Traffic.of(generate_latest(self._registry).decode())

    def answer(self, patch: str, *loops: tuple[Kind, Outcome], tokens: int = 100) -> None:
        """An answer; each loop takes the last ten of its tokens."""
        self.loops.open(patch)
        self.loops.spent(patch, tokens, 0.001)
        found = tuple((Loop(kind, tokens - 10, 2, 5.0, tokens, outcome), patch) for kind, outcome in loops)
        spent = {(kind, patch): 10 for kind, _ in loops}
        self.loops.ended(WatchedAnswer("stop", patch, tokens, found, spent))


@pytest.fixture
def server() -> Server:
    return Server()


def of_kind(traffic: PatchTraffic, kind: str) -> LoopCounts:
    return next(loops for loops in traffic.loops if loops.kind == kind)


def test_loops_are_told_by_patch_and_kind(server: Server) -> None:
    server.answer("a@1", ("verbatim", "terminal"), ("decay", "escaped"))
    for _ in range(9):
        server.answer("a@1")
    server.answer("none", ("verbatim", "escaped"))
    first, second = server.traffic.patches
    assert (first.patch, first.answers, first.tokens) == ("a@1", 10, 1000)
    assert (second.patch, second.answers, second.tokens) == ("none", 1, 100)
    assert [loops.kind for loops in first.loops] == ["verbatim", "decay", "collapse", "doom"]
    assert of_kind(first, "verbatim") == LoopCounts("verbatim", 1, 1, 0, 10, rate_of(1, 10), 0.01)
    assert of_kind(first, "decay") == LoopCounts("decay", 1, 0, 0, 10, rate_of(1, 10), 0.01)
    assert of_kind(first, "doom") == LoopCounts("doom", 0, 0, 0, 0, rate_of(0, 10), 0.0)
    assert of_kind(second, "verbatim").terminal == 0


def test_requests_that_loop_now_are_told(server: Server) -> None:
    server.loops.open("none")
    server.loops.entered("doom", "none")
    (patch,) = server.traffic.patches
    assert [(loops.kind, loops.live) for loops in patch.loops if loops.live] == [("doom", 1)]


def test_before_the_first_answer_there_is_no_rate(server: Server) -> None:
    server.loops.open("none")
    (patch,) = server.traffic.patches
    assert [(loops.rate, loops.token_share) for loops in patch.loops] == [(None, None)] * len(KINDS)


def test_detector_errors_are_told(server: Server) -> None:
    server.loops.failed("a@1")
    server.loops.failed("b@1")
    assert server.traffic.detector_errors == 2


class SwapCoordinator:
    """Swaps, or says that another swap runs."""

    def __init__(self, busy: bool = False) -> None:
        self.busy = busy

    async def status(self) -> Any:
        raise NotImplementedError

    async def swap(self, patches: PatchSet, **_: Any) -> SwapReport:
        if self.busy:
            raise ConflictError("another swap runs")
        times = SwapTimes(stage=100, pause=20, apply=30, verify=50, total=250)
        return SwapReport(id=patches.id, previous="a@1", epoch=1, units=1, tensors=1, modules=1, milliseconds=times)

    async def check(self, patches: PatchSet, **_: Any) -> SwapReport:
        return await self.swap(patches)

    async def undo(self, **_: Any) -> SwapReport:
        return await self.swap(PatchSet())


def test_swaps_are_told_by_how_they_ended(server: Server) -> None:
    coordinator = SwapCoordinator()
    swapper = InstrumentedSwapper(coordinator, server.metrics, "demo")
    asyncio.run(swapper.swap(PatchSet()))
    asyncio.run(swapper.swap(PatchSet()))
    coordinator.busy = True
    with pytest.raises(ConflictError):
        asyncio.run(swapper.swap(PatchSet()))
    assert server.traffic.swaps == (
        Swaps("none", "done", 2, pytest.approx(0.25)),
        Swaps("refused", "conflict", 1, None),
    )


def test_a_change_that_is_taken_back_counts_as_a_swap_and_a_rehearsal_does_not(server: Server) -> None:
    swapper = InstrumentedSwapper(SwapCoordinator(), server.metrics, "demo")
    asyncio.run(swapper.check(PatchSet()))
    assert server.traffic.swaps == ()
    asyncio.run(swapper.undo())
    assert [(swap.patch, swap.result, swap.count) for swap in server.traffic.swaps] == [("none", "done", 1)]


def test_models_of_one_server_are_added_up(server: Server) -> None:
    server.answer("none")
    LoopMetrics(server.metrics, "other").ended(WatchedAnswer("stop", "none", 5, (), {}))
    assert [(patch.patch, patch.answers) for patch in server.traffic.patches] == [("none", 2)]


@pytest.mark.parametrize("name", ['quo"te', "back\\slash", "new\nline", "cur}ly{", "<b>ä</b>", ""])
def test_no_patch_id_leads_astray(server: Server, name: str) -> None:
    server.answer(name)
    assert [patch.patch for patch in server.traffic.patches] == [name]


def test_a_server_without_traffic_has_no_figures() -> None:
    assert Traffic.of("") == Traffic((), (), 0)


def test_vllms_own_metrics_are_passed_over(server: Server) -> None:
    registry = CollectorRegistry()
    Counter("other_requests", "Not ours.", ["patch"], registry=registry).labels("a@1").inc()
    assert Traffic.of(generate_latest(registry).decode()) == Traffic((), (), 0)


@pytest.mark.parametrize(
    "scrape",
    ["vllm_surgery_requests_total{patch=", "vllm_surgery_requests_total NaN", "<p>vllm_surgery_page</p>"],
)
def test_what_is_no_scrape_is_one_line(scrape: str) -> None:
    said = refusal(lambda: Traffic.of(scrape), UsageError)
    assert said.startswith("/metrics is not in Prometheus's text format: ")
    assert "\n" not in said


def test_more_loops_than_answers_are_a_rate_of_1() -> None:
    assert rate_of(5, 2) == rate_of(2, 2) == Estimate(1.0, pytest.approx(0.342, abs=1e-3), 1.0)


def test_of_nothing_there_is_no_rate() -> None:
    assert rate_of(0, 0) is None
