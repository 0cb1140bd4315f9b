# SPDX-License-Identifier: Apache-2.0
"""A canary: a part of the traffic gets a patch, and a rule that was fixed before says whether all of it does."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from vllm_surgery.client.arms import Arm, Scrape
from vllm_surgery.client.fleet import Outcome
from vllm_surgery.errors import FleetError, ServerUnreachableError, SurgeryError, UsageError
from vllm_surgery.intervals import Estimate, difference, split_level

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vllm_surgery.client.client import SurgeryClient
    from vllm_surgery.client.fleet import Answer, Fleet
    from vllm_surgery.client.protocol import ServerState, SwapMode

By: TypeAlias = Literal["servers", "requests"]
Verdict: TypeAlias = Literal["promote", "take back", "go on"]
Guard: TypeAlias = Literal["holds", "broken", "not known yet"]

MOST_MISSES = 3
"""Looks in a row at which a server may not answer. With one it may be busy; with three it is gone."""


@dataclass(frozen=True)
class Rule:
    """What decides. It is fixed before the first answer is seen.

    Attributes:
        min_answers: of the smaller arm before the first judgement; each further one is made at twice as many.
        max_answers: of the smaller arm at the last judgement.
        margin: by how much the share of answers that end by themselves may fall, and that of broken off ones rise.
        length_factor: by what factor the mean length of sound answers may change, either way; infinite for any.
    """

    min_answers: int = 50
    max_answers: int = 3200
    margin: float = 0.05
    length_factor: float = 2.0

    @property
    def looks(self) -> list[int]:
        """Answers of the smaller arm at which it is judged."""
        looks = [self.min_answers]
        while looks[-1] * 2 <= self.max_answers:
            looks.append(looks[-1] * 2)
        return looks

    @property
    def z(self) -> float:
        """Standard errors of each interval, so that all judgements together mislead as rarely as one."""
        return split_level(len(self.looks))


@dataclass(frozen=True)
class Judgement:
    """What the rule says of two arms.

    Attributes:
        verdict: what is to be done.
        reason: in words.
        loops: by how much more of the canary's answers end in a loop.
        stopped: by how much more of them end by themselves.
        aborted: by how much more of them are broken off.
        length: the mean length of its sound answers over that of the others.
    """

    verdict: Verdict
    reason: str
    loops: Estimate
    stopped: Estimate
    aborted: Estimate
    length: Estimate


def judge(rule: Rule, canary: Arm, baseline: Arm) -> Judgement:
    """Judges two arms, each with at least one answer.

    - Take back where the whole interval of the difference in loops lies above 0, or a guard is broken.
    - Promote where it lies below 0, and all guards hold.
    - Else go on.
    """

    def more(name: str) -> Estimate:
        first, second = [(getattr(arm, name), arm.answers) for arm in (canary, baseline)]
        return difference(first, second, rule.z)

    loops, stopped, aborted = more("looped"), more("stopped"), more("aborted")
    length = _ratio(canary, baseline, rule.z)
    guards: dict[str, Guard] = {
        "fewer answers end by themselves": _at_least(stopped, -rule.margin),
        "more answers are broken off": _at_least(Estimate(-aborted.value, -aborted.high, -aborted.low), -rule.margin),
        "sound answers have another length": _within(length, rule.length_factor),
    }
    verdict, reason = _decide(loops, guards)
    return Judgement(verdict, reason, loops, stopped, aborted, length)


def _decide(loops: Estimate, guards: dict[str, Guard]) -> tuple[Verdict, str]:
    broken = [name for name, guard in guards.items() if guard == "broken"]
    if broken:
        return "take back", "; ".join(broken)
    if loops.low > 0:
        return "take back", "more answers loop"
    if loops.high >= 0:
        return "go on", "loops don't differ so far"
    unknown = [name for name, guard in guards.items() if guard != "holds"]
    if unknown:
        return "go on", f"fewer answers loop, and it isn't known yet whether {', or '.join(unknown)}"
    return "promote", "fewer answers loop, and they end as before"


def _at_least(more: Estimate, least: float) -> Guard:
    if more.low > least:
        return "holds"
    return "broken" if more.high < 0 else "not known yet"


def _within(ratio: Estimate, factor: float) -> Guard:
    if math.isinf(factor) or (ratio.low > 1 / factor and ratio.high < factor):
        return "holds"
    return "broken" if ratio.high < 1 / factor or ratio.low > factor else "not known yet"


def _ratio(canary: Arm, baseline: Arm, z: float) -> Estimate:
    """Of mean lengths, with the interval of its logarithm. NaN where there are too few sound answers."""
    error = z * math.hypot(canary.length_error, baseline.length_error)
    ratio = canary.mean_length / baseline.mean_length
    return Estimate(ratio, ratio * math.exp(-error), ratio * math.exp(error))


@dataclass(frozen=True)
class Plan:
    """What is tried, and how.

    Attributes:
        patches: names of the servers' patches, or patches as plain data.
        share: of the servers or of the requests.
        by: which of the two; None: requests, where all servers have slots.
        rule: what decides.
        max_seconds: after which it is taken back without a verdict.
        interval: seconds between two looks.
        mode: what becomes of running requests where weights are swapped.
    """

    patches: Sequence[Any]
    share: float = 0.25
    by: By | None = None
    rule: Rule = field(default_factory=Rule)
    max_seconds: float = 3600.0
    interval: float = 15.0
    mode: SwapMode = "keep"


@dataclass(frozen=True)
class Look:
    """The two arms at one look, over all servers, since the canary began.

    Attributes:
        seconds: since then.
        canary: the answers of the patch.
        baseline: those of what was served before.
        judgement: what the rule says; None where there are too few answers for the next judgement.
        silent: servers that didn't answer, with why.
    """

    seconds: float
    canary: Arm
    baseline: Arm
    judgement: Judgement | None = None
    silent: tuple[str, ...] = ()


@dataclass(frozen=True)
class CanaryReport:
    """How a canary ended.

    Attributes:
        promoted: whether all have the patch now; else none has, but for servers among `outcomes` that say otherwise.
        reason: why, in words.
        patch: id of what was tried.
        before: id of what was served before.
        by: what was shared out.
        canaries: addresses of the servers that had it.
        last: the last look; None where there was none.
        outcomes: of each server, where something was to be taken back.
    """

    promoted: bool
    reason: str
    patch: str
    before: str
    by: By
    canaries: tuple[str, ...]
    last: Look | None
    outcomes: tuple[Outcome, ...] = ()


class _Over(Exception):  # noqa: N818 - no error, but an end
    """Why a canary is to be taken back."""


class Canary:
    """Tries a patch on a part of the traffic of some servers.

    Args:
        fleet: the servers.
        plan: what is tried, and how.
        told: hears of each look.
        sleep, clock: of time.
    """

    def __init__(
        self,
        fleet: Fleet,
        plan: Plan,
        told: Callable[[Look], None] = lambda _: None,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fleet, self._plan, self._told = fleet, plan, told
        self._sleep, self._clock = sleep, clock
        self._looks = list(plan.rule.looks)
        self._misses = dict.fromkeys(map(id, fleet.clients), 0)
        self._seen: dict[int, Scrape] = {}
        self._last: Look | None = None
        self._begun = False

    def run(self) -> CanaryReport:
        """Begins, watches, and promotes or takes back. An interrupt takes back.

        Raises:
            UsageError: the servers differ, can't be told apart, or serve the patch already. Nothing was changed.
            FleetError: a server refused or failed at the beginning. It tells what became of all.
        """
        states = self._fleet.states()
        self._before = _the_same(self._fleet, states)
        by = self._plan.by or ("requests" if all(state.slots for state in states) else "servers")
        self._check_by(by, states)
        self._patch = self._rehearse(states)
        try:
            self._begin(by, states)
            verdict = self._watch()
            if verdict.verdict == "promote":
                self._promote(by)
                return self._report(True, verdict.reason, by)
            reason = verdict.reason
        except _Over as over:
            reason = str(over)
        except KeyboardInterrupt:
            reason = "interrupted"
        except FleetError as error:
            if not self._begun:
                raise
            reason = f"it could not be promoted: {error}"
        # What was interrupted while it began has been taken back there.
        return self._report(False, reason, by, self._take_back(by) if self._begun else ())

    def _check_by(self, by: By, states: Sequence[ServerState]) -> None:
        if by == "requests" and not all(state.slots for state in states):
            raise UsageError("not all servers have slots, so requests can't be shared out: share out servers")
        if by == "servers" and len(states) < 2:  # noqa: PLR2004 - one with, one without
            raise UsageError("sharing out servers takes two of them at least; one with slots can share out requests")

    def _rehearse(self, states: Sequence[ServerState]) -> str:
        """The id of the patch, which every server could serve; and every server watches.

        Raises:
            UsageError: it is what they serve, or one doesn't watch.
            FleetError: one couldn't.
        """
        reports = self._fleet.check({"patches": list(self._plan.patches)}, states)
        patch = str(getattr(reports[0], "id", ""))
        if patch == self._before:
            raise UsageError(f"{patch} is what the servers serve already")
        for client, (scrape, error) in zip(self._fleet.clients, self._scrapes(), strict=True):
            if scrape is None:
                raise UsageError(f"{client.url}: {str(error).removeprefix(f'{client.url}: ')}")
            if not scrape.watched:
                raise UsageError(f"{client.url}: watches for no loops, so there is nothing to judge by")
        return patch

    def _begin(self, by: By, states: Sequence[ServerState]) -> None:
        body: dict[str, Any] = {"patches": list(self._plan.patches)}
        if by == "requests":
            self._shares = [dict(state.slots.default) if state.slots else {} for state in states]
            self._canaries, body = self._fleet, body | {"share": self._plan.share}
        else:
            number = min(max(1, round(self._plan.share * len(states))), len(states) - 1)
            self._canaries, body = self._fleet.subset(self._fleet.clients[:number]), body | {"mode": self._plan.mode}
        reports = self._canaries.change(body, states[: len(self._canaries.clients)])
        changed = {id(client): report.epoch for client, report in zip(self._canaries.clients, reports, strict=True)}
        self._epochs = {
            id(client): changed.get(id(client), state.epoch)
            for client, state in zip(self._fleet.clients, states, strict=True)
        }
        self._begun, self._by, self._began = True, by, self._clock()
        self._first = {
            id(client): scrape
            for client, (scrape, _) in zip(self._fleet.clients, self._scrapes(), strict=True)
            if scrape is not None
        }

    def _watch(self) -> Judgement:
        """The rule's verdict.

        Raises:
            _Over: there is none, or none can come any more.
        """
        while True:
            self._sleep(self._plan.interval)
            look = self._look()
            self._last = look
            self._told(look)
            if look.judgement is not None and look.judgement.verdict != "go on":
                return look.judgement
            if not self._looks:
                raise _Over(f"no verdict after {self._plan.rule.looks[-1]} answers of the smaller arm")
            if look.seconds >= self._plan.max_seconds:
                raise _Over(f"no verdict after {self._plan.max_seconds / 60:g} minutes")

    def _look(self) -> Look:
        states = self._fleet.ask(lambda client: client.state())
        silent = self._missed(states)
        for client, (state, _) in zip(self._fleet.clients, states, strict=True):
            if state is not None and state.epoch != self._epochs[id(client)]:
                raise _Over(f"{client.url} was swapped or restarted meanwhile, and serves {state.active}")
        for client, (scrape, _) in zip(self._fleet.clients, self._scrapes(), strict=True):
            if scrape is not None:
                self._seen[id(client)] = scrape
                self._first.setdefault(id(client), scrape)
                if scrape.errors > self._first[id(client)].errors:
                    raise _Over(f"a loop detector failed on {client.url}")
        canary, baseline = self._arms()
        seconds = self._clock() - self._began
        return Look(seconds, canary, baseline, self._judge(canary, baseline), silent)

    def _missed(self, states: Sequence[Answer[ServerState]]) -> tuple[str, ...]:
        """The servers that don't answer, and why.

        Raises:
            _Over: one hasn't for too long.
        """
        silent = []
        for client, (_, error) in zip(self._fleet.clients, states, strict=True):
            self._misses[id(client)] = 0 if error is None else self._misses[id(client)] + 1
            if error is not None:
                silent.append(f"{client.url}: {str(error).removeprefix(f'{client.url}: ')}")
            if self._misses[id(client)] >= MOST_MISSES:
                raise _Over(f"no answer at {MOST_MISSES} looks in a row: {silent[-1]}")
        return tuple(silent)

    def _arms(self) -> tuple[Arm, Arm]:
        canary, baseline = Arm(), Arm()
        having = {id(client) for client in self._canaries.clients}
        for client, scrape in self._seen.items():
            first = self._first[client]
            if client in having:
                canary += scrape.arm(self._patch) - first.arm(self._patch)
            if self._by == "requests" or client not in having:
                baseline += scrape.arm(self._before) - first.arm(self._before)
        return canary, baseline

    def _judge(self, canary: Arm, baseline: Arm) -> Judgement | None:
        answers = min(canary.answers, baseline.answers)
        if not self._looks or answers < self._looks[0]:
            return None
        self._looks = [look for look in self._looks if look > answers]
        return judge(self._plan.rule, canary, baseline)

    def _promote(self, by: By) -> None:
        """Gives it to all.

        Raises:
            FleetError: one refused or failed, and those that had it only now have it no more.
        """
        having = {id(client) for client in self._canaries.clients}
        rest = [client for client in self._fleet.clients if by == "requests" or id(client) not in having]
        self._fleet.subset(rest).change({"patches": list(self._plan.patches), "mode": self._plan.mode})

    def _take_back(self, by: By) -> list[Outcome]:
        if by == "servers":
            return self._canaries.undo([self._epochs[id(client)] for client in self._canaries.clients])
        shares = {id(client): share for client, share in zip(self._fleet.clients, self._shares, strict=True)}

        def back(client: SurgeryClient) -> Outcome:
            try:
                state = client.state()
                if not self._shares_out(state):
                    return Outcome(client.url, "unchanged", state.active, None)
                client.change({"default": shares[id(client)], "if_epoch": state.epoch})
                return Outcome(client.url, "taken back", client.state().active, None)
            except ServerUnreachableError as error:
                return Outcome(client.url, "gone", None, str(error))
            except SurgeryError as error:
                return Outcome(client.url, "changed", None, str(error))

        return [outcome for outcome, _ in self._fleet.ask(back) if outcome is not None]

    def _shares_out(self, state: ServerState) -> bool:
        """True where a part of the requests gets the patch, and by this canary."""
        slots = state.slots
        names = {patch.name for patch in slots.patches if patch.id == self._patch} if slots else set()
        return slots is not None and len(slots.default) > 1 and bool(names & slots.default.keys())

    def _scrapes(self) -> list[Answer[Scrape]]:
        return self._fleet.ask(lambda client: Scrape.of(client.metrics()))

    def _report(self, promoted: bool, reason: str, by: By, outcomes: Sequence[Outcome] = ()) -> CanaryReport:
        canaries = tuple(client.url for client in self._canaries.clients)
        return CanaryReport(promoted, reason, self._patch, self._before, by, canaries, self._last, tuple(outcomes))


def _the_same(fleet: Fleet, states: Sequence[ServerState]) -> str:
    """The id of what all servers serve all requests that choose nothing.

    Raises:
        UsageError: there is none.
    """
    for client, state in zip(fleet.clients, states, strict=True):
        if state.active != states[0].active:
            first = fleet.clients[0].url
            raise UsageError(f"{client.url} serves {state.active}, and {first} {states[0].active}: swap them first")
        if state.slots is not None and len(state.slots.default) > 1:
            raise UsageError(f"{client.url}: the default is in shares already; make one patch the default first")
    return states[0].active
