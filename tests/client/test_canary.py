# SPDX-License-Identifier: Apache-2.0
"""A canary is promoted or taken back by its rule, whatever happens to the servers meanwhile."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from tests.client.fleet_server import FleetServer
from tests.examples import refusal
from vllm_surgery.client.arms import Arm, Scrape
from vllm_surgery.client.canary import Canary, Plan, Rule, judge
from vllm_surgery.client.client import SurgeryClient
from vllm_surgery.client.fleet import Fleet
from vllm_surgery.engine.metrics import Metrics
from vllm_surgery.engine.monitoring.metrics import LoopMetrics
from vllm_surgery.engine.monitoring.request import WatchedAnswer
from vllm_surgery.errors import FleetError, UsageError
from vllm_surgery.intervals import Estimate, difference, split_level, wilson
from vllm_surgery.loops import Loop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vllm_surgery.client.canary import CanaryReport, Look

RULE = Rule(min_answers=50, max_answers=200)
Answers = list[tuple[str, bool, int]]
"""Why each ended, whether in a loop, and its tokens."""

SOUND: Answers = [("stop", False, 100)] * 10
LOOPING: Answers = [("length", True, 200)] * 5 + [("stop", False, 100)] * 5
SHORT: Answers = [("stop", False, 9)] * 10
BROKEN_OFF: Answers = [("abort", False, 50)] * 5 + [("stop", False, 100)] * 5
CUT: Answers = [("length", False, 100)] * 10


class Counts:
    """The metrics of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.loops = LoopMetrics(Metrics(self._registry), "demo")
        self.loops.open("old@1")

    def add(self, patch: str, answers: Answers) -> None:
        self.loops.open(patch)
        for reason, looped, tokens in answers:
            loops = ((Loop("verbatim", 1, 2, 5.0, tokens, "terminal"), patch),) if looped else ()
            self.loops.ended(WatchedAnswer(reason, patch, tokens, loops, {}, only_patch=patch))

    @property
    def text(self) -> str:
        return generate_latest(self._registry).decode()


def arm(answers: Answers, times: int = 1) -> Arm:
    counts = Counts()
    counts.add("x", answers * times)
    return Scrape.of(counts.text).arm("x")


# What is counted.


def test_an_arm_is_what_its_answers_are() -> None:
    counted = arm([("stop", False, 10), ("stop", False, 30), ("length", True, 200), ("abort", False, 5)])
    assert (counted.answers, counted.looped, counted.stopped, counted.aborted) == (4, 1, 2, 1)
    assert (counted.sound, counted.mean_length) == (2, 20)
    assert {bound: count for bound, count in counted.lengths.items() if count} == {16.0: 1, 32.0: 1}


def test_an_answer_that_was_taken_back_out_of_a_loop_counts_as_one_that_loops() -> None:
    counts, loop = Counts(), Loop("verbatim", 1, 2, 5.0, 9, "running")
    counts.loops.ended(WatchedAnswer("stop", "y", 9, (), {}, ((loop, "x"),), only_patch="x"))
    counts.loops.open("x")
    counted = Scrape.of(counts.text).arm("x")
    assert (counted.answers, counted.looped, counted.sound) == (1, 1, 0)


def test_a_loop_that_the_model_left_is_no_terminal_one_and_no_sound_answer() -> None:
    counts = Counts()
    loops = ((Loop("verbatim", 1, 2, 5.0, 9, "escaped"), "x"),)
    counts.loops.ended(WatchedAnswer("stop", "x", 90, loops, {}, only_patch="x"))
    counts.loops.open("x")
    counted = Scrape.of(counts.text).arm("x")
    assert (counted.answers, counted.looped, counted.sound) == (1, 0, 0)


def test_an_answer_of_two_patches_belongs_to_neither() -> None:
    counts = Counts()
    counts.loops.open("x")
    counts.loops.ended(WatchedAnswer("stop", "x", 9, (), {}))
    assert Scrape.of(counts.text).arm("x").answers == 0


def test_arms_add_up_and_are_counted_from_a_look_on() -> None:
    one, two = arm(LOOPING), arm(LOOPING, 3)
    assert one + one == replace(arm(LOOPING, 2))
    assert (two - one).answers == 20
    assert (two - one).looped == 10
    assert one - two == one, "a server that was started anew counts from nothing"
    assert Scrape.of("").arm("x") == Arm()


def test_the_error_of_a_mean_is_no_less_than_it_is() -> None:
    counted = arm([("stop", False, 40), ("stop", False, 60)] * 50)
    assert counted.mean_length == 50
    assert 10 / 50 / 10 <= counted.length_error < 0.05
    assert math.isnan(arm([("stop", False, 40)]).length_error)
    assert math.isnan(Arm().mean_length)


# Intervals.


def test_a_difference_has_newcombes_interval() -> None:
    # Newcombe 1998, table II, method 10: 56/70 - 48/80 and 9/10 - 3/10.
    for first, second, low, high in (((56, 70), (48, 80), 0.0524, 0.3339), ((9, 10), (3, 10), 0.1705, 0.8090)):
        found = difference(first, second)
        assert (round(found.low, 4), round(found.high, 4)) == (low, high)


def test_more_looks_make_wider_intervals() -> None:
    assert split_level(1) == pytest.approx(1.96, abs=1e-3)
    assert split_level(7) == pytest.approx(2.69, abs=1e-2)
    assert wilson(5, 10, split_level(7)).low < wilson(5, 10).low


# The rule.


@pytest.mark.parametrize(
    ("canary", "baseline", "verdict", "reason"),
    [
        (SOUND, LOOPING, "promote", "fewer answers loop, and they end as before"),
        (LOOPING, SOUND, "take back", "fewer answers end by themselves"),
        (SOUND, SOUND, "go on", "loops don't differ so far"),
        (SHORT, LOOPING, "take back", "sound answers have another length"),
        (BROKEN_OFF, LOOPING, "take back", "more answers are broken off"),
        (CUT, LOOPING, "take back", "fewer answers end by themselves"),
        (LOOPING, CUT, "take back", "more answers loop"),
        (CUT, [("length", True, 200)] * 10, "go on", "fewer answers loop, and it isn't known yet whether "),
    ],
)
def test_the_rule(canary: Answers, baseline: Answers, verdict: str, reason: str) -> None:
    found = judge(RULE, arm(canary, 20), arm(baseline, 20))
    assert found.verdict == verdict
    assert found.reason.startswith(reason)


def test_few_answers_show_nothing() -> None:
    few: Answers = [("stop", False, 100)] * 4 + [("length", True, 200)]
    assert judge(RULE, arm(SOUND), arm(few, 2)).verdict == "go on"


def test_any_length_will_do_where_that_is_said() -> None:
    rule = replace(RULE, length_factor=math.inf)
    assert judge(rule, arm(SHORT, 20), arm(LOOPING, 20)).verdict == "promote"


def test_it_is_judged_at_each_doubling() -> None:
    assert Rule(50, 3200).looks == [50, 100, 200, 400, 800, 1600, 3200]
    assert Rule(50, 60).looks == [50]
    assert Rule(50, 60).z == pytest.approx(1.96, abs=1e-3)


def test_a_patch_that_does_nothing_is_rarely_promoted_or_found_worse() -> None:
    from random import Random

    random, misled = Random(7), 0
    for _ in range(300):
        rates = [[random.random() < 0.3 for _ in range(200)] for _ in range(2)]
        for look in RULE.looks:
            found = difference((sum(rates[0][:look]), look), (sum(rates[1][:look]), look), RULE.z)
            if found.low > 0 or found.high < 0:
                misled += 1
                break
    assert misled / 300 < 0.06


# Whole canaries.


@dataclass
class Site:
    """Servers with traffic that comes with the time.

    Attributes:
        traffic: what each patch answers, in one look, of each server.
        before_look: called before each look, with its number.
    """

    servers: list[FleetServer]
    traffic: dict[str, Answers]
    before_look: Callable[[int], None] = lambda _: None
    now: float = 0.0
    looks: int = 0
    counts: list[Counts] = field(default_factory=list)
    told: list[Look] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.counts = [Counts() for _ in self.servers]
        self._scrape()

    def sleep(self, seconds: float) -> None:
        self.now, self.looks = self.now + seconds, self.looks + 1
        self.before_look(self.looks)
        for server, counts in zip(self.servers, self.counts, strict=True):
            names = server.slots or {server.active.partition("@")[0]: 1.0}
            for name in names:
                patch = "none" if name == "none" else f"{name}@1"
                counts.add(patch, self.traffic.get(patch, SOUND))
        self._scrape()

    def _scrape(self) -> None:
        for server, counts in zip(self.servers, self.counts, strict=True):
            server.scrape = counts.text

    def run(self, **plan: Any) -> CanaryReport:
        plan = {"patches": ["new"], "rule": Rule(20, 80, margin=0.1), **plan}
        clients = [SurgeryClient(server.url, change_seconds=5) for server in self.servers]
        fleet = Fleet(clients, settle_seconds=1)
        return Canary(fleet, Plan(**plan), self.told.append, sleep=self.sleep, clock=lambda: self.now).run()


@pytest.fixture
def site() -> Iterator[Callable[..., Site]]:
    made: list[FleetServer] = []

    def make(number: int = 4, *, slots: bool = False, **traffic: Answers) -> Site:
        servers = [FleetServer(slots=slots) for _ in range(number)]
        made.extend(servers)
        return Site(servers, {f"{patch}@1": answers for patch, answers in traffic.items()})

    yield make
    for server in made:
        server.stop()


def active(site: Site) -> list[str]:
    return [server.active for server in site.servers]


def test_a_patch_that_ends_loops_is_promoted_to_all_servers(site: Callable[..., Site]) -> None:
    here = site(old=LOOPING)
    report = here.run()
    assert (report.promoted, report.by, report.reason) == (
        True,
        "servers",
        "fewer answers loop, and they end as before",
    )
    assert report.canaries == (here.servers[0].url,)
    assert active(here) == ["new@1"] * 4
    assert report.outcomes == ()


def test_while_it_runs_only_its_share_has_it(site: Callable[..., Site]) -> None:
    here = site(old=LOOPING)
    seen: list[list[str]] = []
    here.before_look = lambda _: seen.append(active(here))
    here.run(share=0.5)
    assert {tuple(each) for each in seen} == {("new@1", "new@1", "old@1", "old@1")}


def test_a_patch_that_brings_loops_is_taken_back(site: Callable[..., Site]) -> None:
    here = site(new=[("stop", True, 100)] * 5 + SOUND[:5])
    report = here.run()
    assert (report.promoted, report.reason) == (False, "more answers loop")
    assert active(here) == ["old@1"] * 4
    assert [(outcome.fate, outcome.serves) for outcome in report.outcomes] == [("taken back", "old@1")]


def test_a_patch_that_ends_loops_and_breaks_answers_is_taken_back(site: Callable[..., Site]) -> None:
    here = site(old=LOOPING, new=SHORT)
    assert here.run().reason == "sound answers have another length"
    assert active(here) == ["old@1"] * 4


def test_a_patch_that_does_nothing_is_taken_back_after_the_most_answers(site: Callable[..., Site]) -> None:
    here = site()
    report = here.run()
    assert (report.promoted, report.reason) == (False, "no verdict after 80 answers of the smaller arm")
    judged = [look.canary.answers for look in here.told if look.judgement]
    assert judged == [20, 40, 80]


def test_without_traffic_it_is_taken_back_in_time(site: Callable[..., Site]) -> None:
    here = site(new=[], old=[])
    report = here.run(interval=15.0, max_seconds=60)
    assert (report.reason, here.looks) == ("no verdict after 1 minutes", 4)
    assert active(here) == ["old@1"] * 4


def test_requests_are_shared_out_where_there_are_slots(site: Callable[..., Site]) -> None:
    here = site(2, slots=True, old=LOOPING)
    seen: list[dict[str, float] | None] = []
    here.before_look = lambda _: seen.append(here.servers[0].slots)
    report = here.run(share=0.2)
    assert (report.promoted, report.by) == (True, "requests")
    assert seen[0] == {"new": 0.2, "old": 0.8}
    assert [server.slots for server in here.servers] == [{"new": 1.0}] * 2


def test_shares_of_requests_are_taken_back(site: Callable[..., Site]) -> None:
    here = site(1, slots=True, new=LOOPING)
    report = here.run()
    assert (report.promoted, here.servers[0].slots) == (False, {"old": 1.0})
    assert [outcome.fate for outcome in report.outcomes] == ["taken back"]


def test_servers_can_be_shared_out_although_they_have_slots(site: Callable[..., Site]) -> None:
    here = site(2, slots=True, old=LOOPING)
    report = here.run(by="servers")
    assert (report.promoted, report.by) == (True, "servers")
    assert [server.slots for server in here.servers] == [{"new": 1.0}] * 2


@pytest.mark.parametrize("slots", [False, True])
def test_an_interrupt_takes_it_back(site: Callable[..., Site], slots: bool) -> None:
    here = site(2, slots=slots)

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    here.before_look = interrupt
    report = here.run()
    assert (report.promoted, report.reason, report.last) == (False, "interrupted", None)
    assert active(here)[-1:] == ["old@1"]
    assert here.servers[0].slots in (None, {"old": 1.0})


def test_an_interrupt_at_the_beginning_is_one_too(site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    here = site(2)
    monkeypatch.setattr(Fleet, "change", interrupt)
    report = here.run()
    assert (report.promoted, report.reason, report.outcomes) == (False, "interrupted", ())


def test_a_server_that_fails_at_the_beginning_leaves_nothing(site: Callable[..., Site]) -> None:
    here = site(4)
    here.servers[1].fails["apply"] = "undone"
    with pytest.raises(FleetError, match="2 of 2 servers serve what they served before"):
        here.run(share=0.5)
    assert active(here) == ["old@1"] * 4


def test_a_promotion_that_fails_takes_all_of_it_back(site: Callable[..., Site]) -> None:
    here = site(3, old=LOOPING)

    def fail(_: int) -> None:
        here.servers[2].fails["apply"] = "undone"

    here.before_look = fail
    report = here.run()
    assert report.reason.startswith("it could not be promoted: ")
    assert active(here) == ["old@1"] * 3


def test_a_promotion_of_slots_that_fails_takes_the_shares_back(site: Callable[..., Site]) -> None:
    here = site(2, slots=True, old=LOOPING)

    def fail(number: int) -> None:
        put = here.servers[1].put
        if number == 1:
            here.servers[1].put = lambda body: (  # type: ignore[method-assign]
                (500, {"error": {"message": "no", "type": "SwapFailedError", "code": 500}})
                if "patches" in body and not body.get("check")
                else put(body)
            )

    here.before_look = fail
    assert not here.run().promoted
    assert [server.slots for server in here.servers] == [{"old": 1.0}] * 2


def test_somebody_elses_swap_ends_it_and_stays(site: Callable[..., Site]) -> None:
    here = site(2)

    def swap(number: int) -> None:
        if number == 1:
            here.servers[0].put({"patches": ["theirs"]})

    here.before_look = swap
    report = here.run()
    assert report.reason == f"{here.servers[0].url} was swapped or restarted meanwhile, and serves theirs@1"
    assert [outcome.fate for outcome in report.outcomes] == ["changed"]
    assert active(here) == ["theirs@1", "old@1"]


def test_somebody_elses_default_stays_too(site: Callable[..., Site]) -> None:
    here = site(1, slots=True)
    here.before_look = lambda number: here.servers[0].put({"patches": ["theirs"]}) and None if number == 1 else None
    report = here.run()
    assert [outcome.fate for outcome in report.outcomes] == ["unchanged"]
    assert here.servers[0].slots == {"theirs": 1.0}


def test_a_server_that_is_gone_ends_it_after_three_looks(site: Callable[..., Site]) -> None:
    here = site(2, new=[], old=[])
    here.before_look = lambda number: here.servers[1].stop() if number == 2 else None
    report = here.run()
    assert report.reason.startswith("no answer at 3 looks in a row: ")
    assert here.looks == 4
    assert [look.silent != () for look in here.told] == [False, True, True]
    assert active(here)[0] == "old@1"


def test_a_canary_that_is_gone_is_named(site: Callable[..., Site]) -> None:
    here = site(2, new=[], old=[])
    here.before_look = lambda number: here.servers[0].stop() if number == 1 else None
    assert [outcome.fate for outcome in here.run().outcomes] == ["gone"]


def test_slots_that_are_gone_are_named(site: Callable[..., Site]) -> None:
    here = site(2, slots=True, new=[], old=[])
    here.before_look = lambda number: here.servers[0].stop() if number == 1 else None
    assert [outcome.fate for outcome in here.run().outcomes] == ["gone", "taken back"]


def test_a_detector_that_fails_ends_it(site: Callable[..., Site]) -> None:
    here = site(2)
    here.before_look = lambda _: here.counts[1].loops.failed("old@1")
    assert here.run().reason == f"a loop detector failed on {here.servers[1].url}"


def test_nothing_is_begun_where_a_server_refuses(site: Callable[..., Site]) -> None:
    here = site(2)
    here.servers[1].fails["check"] = "refuses"
    with pytest.raises(FleetError, match="nothing was changed"):
        here.run()
    assert active(here) == ["old@1"] * 2


def test_what_cannot_be_tried(site: Callable[..., Site]) -> None:
    def said(here: Site, **plan: Any) -> str:
        return refusal(lambda: here.run(**plan), UsageError)

    assert said(site(1)) == "sharing out servers takes two of them at least; one with slots can share out requests"
    assert (
        said(site(2), by="requests") == "not all servers have slots, so requests can't be shared out: share out servers"
    )
    assert said(site(2), patches=["old"]) == "old@1 is what the servers serve already"
    here = site(2)
    here.servers[1].served.append("other@1")
    first, second = here.servers
    assert said(here) == f"{second.url} serves other@1, and {first.url} old@1: swap them first"
    here = site(1, slots=True)
    here.servers[0].slots = {"old": 0.5, "none": 0.5}
    assert said(here) == (f"{here.servers[0].url}: the default is in shares already; make one patch the default first")
    here = site(2)
    here.servers[1].scrape = ""
    assert said(here) == f"{here.servers[1].url}: watches for no loops, so there is nothing to judge by"
    here.servers[1].scrape = "vllm_surgery_watching{"
    assert said(here).startswith(f"{here.servers[1].url}: /metrics is not in Prometheus's text format: ")


def test_intervals_are_told(site: Callable[..., Site]) -> None:
    last = site(old=LOOPING).run().last
    assert last is not None
    assert last.judgement is not None
    assert isinstance(last.judgement.loops, Estimate)
    assert last.judgement.loops.high < 0
