# SPDX-License-Identifier: Apache-2.0
"""A trial judged: all figures of a report, as data. The same answers give the same figures."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from vllm_surgery.evaluation.analysis.outcomes import Rates, ever_loops, loops, until_loop
from vllm_surgery.evaluation.analysis.side_effects import Healthy, Ordinary, Tasks, healthy, ordinary, tasks
from vllm_surgery.evaluation.analysis.statistics import Paired, compare, survival
from vllm_surgery.evaluation.analysis.tail_judge import Agreement, ends_in_repeats
from vllm_surgery.evaluation.analysis.verdict import RULE, Evidence, Verdict, judge
from vllm_surgery.evaluation.arms import UNPATCHED
from vllm_surgery.evaluation.drift import drift

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vllm_surgery.evaluation.arms import Arm
    from vllm_surgery.evaluation.backends.base import TokenLogprobs
    from vllm_surgery.evaluation.probes import Probe, Use
    from vllm_surgery.evaluation.records import Record
    from vllm_surgery.evaluation.trial import Trial

JUDGED = "judged"
"""The name of the group that the verdict is about."""


class PairKey(NamedTuple):
    """The key by which answers of two arms are paired: all of an answer's identity but its arm."""

    cell: str
    set: str
    probe: str
    seed: int


@dataclass(frozen=True)
class ArmSummary:
    """All figures of one arm.

    Attributes:
        rates: of the answers that the verdict is about, and of each cell and set that is for loops.
        against: the unpatched arm, for the same groups: answers that end in a loop.
        ever_against: answers that were ever in one.
        by_probe: of the judged answers, and of those of a search half, over all cells.
        onsets: of each judged answer the onset of its first loop and True, or its length and False.
        survival: share of the judged answers not yet in a loop, from which token on.
        tasks: of each set of short lists and skills.
        exact: as `healthy`, with whole distributions; None where it wasn't asked for.
        judges: what the detectors and the tail judge say of the judged answers; None where there are none.
        tail_against: the unpatched arm: judged answers that end in a loop, says the tail judge.
        other_tokens: whether its model cuts healthy text into other tokens than the unpatched arm's, so that their
            probabilities can't be compared.
    """

    arm: Arm
    rates: dict[str, Rates]
    against: dict[str, Paired]
    ever_against: dict[str, Paired]
    by_probe: dict[str, Rates]
    onsets: list[tuple[int, bool]]
    survival: list[tuple[int, float]]
    tasks: dict[str, Tasks]
    ordinary: Ordinary | None
    healthy: Healthy | None
    exact: Healthy | None = None
    judges: Agreement | None = None
    tail_against: Paired | None = None
    other_tokens: bool = False


@dataclass(frozen=True)
class Summary:
    """All figures of a trial.

    Attributes:
        answers: that there are, of `expected`.
        verdicts: by the name of the patch's arm; none while answers are missing.
    """

    about: dict[str, Any]
    protocol: dict[str, Any]
    answers: int
    expected: int
    rule: str
    arms: list[ArmSummary]
    verdicts: dict[str, Verdict]

    @property
    def complete(self) -> bool:
        """True if every answer is there."""
        return self.answers == self.expected

    def to_data(self) -> dict[str, Any]:
        """Plain data; what can't be said is null."""
        plain: dict[str, Any] = finite(asdict(self))
        return plain


def summarize(
    trial: Trial,
    records: Sequence[Record],
    logprobs: Mapping[tuple[str, str, str], TokenLogprobs],
    exact: Mapping[str, Healthy] | None = None,
    *,
    run_code: bool = False,
) -> Summary:
    """Judges a trial.

    Args:
        trial: what was asked.
        records: the answers. Where some are missing, only those are judged that all arms have.
        logprobs: of healthy text, by arm, set and probe.
        exact: healthy text with whole distributions, by arm.
        run_code: whether code in answers may be run, in a process with limits.
    """
    answers = _Answers(trial, records)
    arms = [_arm(answers, arm, logprobs, (exact or {}).get(arm.name), run_code) for arm in trial.arms]
    expected = sum(len(trial.jobs(arm)) for arm in trial.arms)
    summary = Summary(
        trial.about, trial.protocol.model_dump(exclude_none=True), answers.count, expected, RULE, arms, {}
    )
    if not (summary.complete and answers.of(UNPATCHED, JUDGED)):
        return summary
    known = {one.arm.name: one for one in arms}
    for one in arms:
        if one.arm.kind == "patch":
            summary.verdicts[one.arm.name] = _verdict(answers, known[UNPATCHED], one, trial.arms)
    return summary


class _Answers:
    """The answers of all arms, by place; only the places that all arms have."""

    def __init__(self, trial: Trial, records: Sequence[Record]) -> None:
        self.trial, self.count = trial, len(records)
        self._probes = {(name, probe.id): probe for name, one in trial.sets.items() for probe in one.probes}
        by_arm: dict[str, dict[PairKey, Record]] = {arm.name: {} for arm in trial.arms}
        for record in records:
            by_arm[record.key.arm][PairKey(*record.key[1:])] = record
        places = [PairKey(*job.key[1:]) for job in trial.jobs(trial.arms[0])]
        self.places = [place for place in places if all(place in answers for answers in by_arm.values())]
        self._by_arm = by_arm

    def probe(self, place: PairKey) -> Probe:
        return self._probes[place.set, place.probe]

    def use(self, place: PairKey) -> Use:
        return self.trial.sets[place.set].use

    def of(self, arm: str, group: str) -> list[Record]:
        """An arm's answers of a group, in the same order for all arms."""
        return [self._by_arm[arm][place] for place in self.group(group)]

    def group(self, group: str) -> list[PairKey]:
        """The places of a group: `JUDGED`, a ``cell/set``, or a ``set/probe`` with a colon before it."""
        return [place for place in self.places if self._belongs(place, group)]

    def groups(self) -> list[str]:
        """`JUDGED`, and every ``cell/set`` that is for loops."""
        found = {f"{place.cell}/{place.set}": None for place in self.places if self.use(place) == "loops"}
        return [group for group in (JUDGED, *found) if self.group(group)]

    def with_use(self, *uses: Use) -> dict[str, list[PairKey]]:
        """The places of each set with one of these uses."""
        sets: dict[str, list[PairKey]] = {}
        for place in self.places:
            if self.use(place) in uses:
                sets.setdefault(place.set, []).append(place)
        return sets

    def at(self, arm: str, places: Sequence[PairKey]) -> list[Record]:
        return [self._by_arm[arm][place] for place in places]

    def _belongs(self, place: PairKey, group: str) -> bool:
        if self.use(place) != "loops":
            return False
        if group == JUDGED:
            return self.probe(place).is_judged
        return group == f"{place.cell}/{place.set}"

    def compare(self, first: str, second: str, group: str, happens: Callable[[Record], bool]) -> Paired:
        before, after = ([happens(record) for record in self.of(arm, group)] for arm in (first, second))
        return compare(before, after, self.clusters(group), self.probes(group))

    def against(self, arms: Sequence[str], second: str) -> Paired:
        """Every arm of `arms` against `second`, as pairs of one comparison."""
        before = [loops(record) for arm in arms for record in self.of(arm, JUDGED)]
        after = [loops(record) for record in self.of(second, JUDGED)] * len(arms)
        return compare(before, after, self.clusters(JUDGED) * len(arms), self.probes(JUDGED) * len(arms))

    def probes(self, group: str) -> list[str]:
        """The probe of each answer of a group."""
        return [f"{place.set}/{place.probe}" for place in self.group(group)]

    def clusters(self, group: str) -> list[str]:
        """What each answer of a group is about: those about one thing aren't independent of each other."""
        return [f"{place.set}/{self.probe(place).subject or place.probe}" for place in self.group(group)]


def _arm(
    answers: _Answers,
    arm: Arm,
    logprobs: Mapping[tuple[str, str, str], TokenLogprobs],
    exact: Healthy | None,
    run_code: bool,
) -> ArmSummary:
    groups = answers.groups()
    texts = _texts(answers.trial, arm.name, logprobs)
    other_tokens = any(base.targets != own.targets for _, base, own in texts)
    other = [] if arm.name == UNPATCHED else groups
    onsets = [until_loop(record) for record in answers.of(arm.name, JUDGED)]
    return ArmSummary(
        arm=arm,
        rates={group: Rates.of(answers.of(arm.name, group)) for group in groups},
        against={group: answers.compare(UNPATCHED, arm.name, group, loops) for group in other},
        ever_against={group: answers.compare(UNPATCHED, arm.name, group, ever_loops) for group in other},
        by_probe=_by_probe(answers, arm.name),
        onsets=onsets,
        survival=survival(onsets) if onsets else [],
        tasks={
            name: tasks(
                [answers.probe(place) for place in places],
                answers.at(UNPATCHED, places),
                answers.at(arm.name, places),
                run_code=run_code,
            )
            for name, places in answers.with_use("short", "skills").items()
        },
        ordinary=_ordinary(answers, arm.name),
        healthy=None if other_tokens else _healthy(answers.trial, texts),
        exact=exact,
        judges=Agreement.of(answers.of(arm.name, JUDGED)) if JUDGED in groups else None,
        tail_against=answers.compare(UNPATCHED, arm.name, JUDGED, ends_in_repeats) if JUDGED in other else None,
        other_tokens=other_tokens,
    )


def _by_probe(answers: _Answers, arm: str) -> dict[str, Rates]:
    found: dict[str, list[PairKey]] = {}
    for name, places in answers.with_use("loops").items():
        for place in places:
            half = answers.probe(place).half
            found.setdefault(f"{name}/{place.probe}" if half is None else f"{name}, {half}", []).append(place)
    return {name: Rates.of(answers.at(arm, places)) for name, places in found.items()}


def _ordinary(answers: _Answers, arm: str) -> Ordinary | None:
    places = [place for found in answers.with_use("healthy").values() for place in found]
    return ordinary(answers.at(UNPATCHED, places), answers.at(arm, places)) if places else None


def _texts(
    trial: Trial, arm: str, logprobs: Mapping[tuple[str, str, str], TokenLogprobs]
) -> list[tuple[str, TokenLogprobs, TokenLogprobs]]:
    """Each healthy text that was measured unpatched and under an arm; none for the unpatched arm itself."""
    keys = [(name, probe.id) for name in trial.protocol.text for probe in trial.sets[name].probes]
    pairs = [(key[1], logprobs.get((UNPATCHED, *key)), logprobs.get((arm, *key))) for key in keys]
    return [(text, base, own) for text, base, own in pairs if base is not None and own is not None and arm != UNPATCHED]


def _healthy(trial: Trial, texts: Sequence[tuple[str, TokenLogprobs, TokenLogprobs]]) -> Healthy | None:
    """The drift over all healthy texts; None while one is missing."""
    asked = sum(len(trial.sets[name].probes) for name in trial.protocol.text)
    return healthy([drift(*text) for text in texts]) if texts and len(texts) == asked else None


def _verdict(answers: _Answers, base: ArmSummary, patch: ArmSummary, arms: Sequence[Arm]) -> Verdict:
    shams = [arm.name for arm in arms if arm.control_of == patch.arm.name]
    both = (base.ordinary, patch.ordinary)
    return judge(
        Evidence(
            ends=patch.against[JUDGED],
            ever=patch.ever_against[JUDGED],
            against_shams=answers.against(shams, patch.arm.name) if shams else None,
            tasks=list(patch.tasks.values()),
            ordinary=(both[0], both[1]) if both[0] is not None and both[1] is not None else None,
            rates=(base.rates[JUDGED], patch.rates[JUDGED]),
        )
    )


def finite(data: Any) -> Any:
    """Plain data as JSON can say it: null where a number is none."""
    if isinstance(data, dict):
        return {str(key): finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
