# SPDX-License-Identifier: Apache-2.0
"""Measurements of a candidate: its effect on loops, and its cost, on the search's own probes."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from vllm_surgery.evaluation.analysis.outcomes import loops, terminal_kinds, wasted
from vllm_surgery.evaluation.analysis.side_effects import healthy
from vllm_surgery.evaluation.analysis.summary import finite
from vllm_surgery.evaluation.analysis.tail_judge import ends_in_repeats
from vllm_surgery.evaluation.analysis.verdict import MIN_ENTRIES_RATIO
from vllm_surgery.evaluation.tasks.list_entries import distinct_entries
from vllm_surgery.loops import KINDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm_surgery.evaluation.analysis.side_effects import Tasks
    from vllm_surgery.evaluation.drift import Drift
    from vllm_surgery.evaluation.records import Record
    from vllm_surgery.localization.candidates import Candidate
    from vllm_surgery.localization.settings import SearchSettings


@dataclass(frozen=True)
class LoopChange:
    """Answers to the same probes and seeds without and with a candidate. Loops are what either of the two judges says.

    Attributes:
        answers: how many there are.
        base: how many end in a loop without it.
        looped: how many do with it.
        rescued: end in a loop only without it.
        newly: end in a loop only with it.
        kinds: by kind, how many end in a loop of it without and with it, say the detectors.
        repeats: how many do without and with it, says the tail judge.
        late: tokens before loops, of all tokens of the answers with it: the later loops begin, the larger.
        entries: different entries of all answers together, with it over without it.
    """

    answers: int
    base: int
    looped: int
    rescued: int
    newly: int
    kinds: dict[str, tuple[int, int]]
    repeats: tuple[int, int]
    late: float
    entries: float

    @classmethod
    def of(cls, base: Sequence[Record], other: Sequence[Record]) -> LoopChange:
        """The figures of two lists of answers in the same order, of which there must be one."""
        pairs = [(loops_by_either(one), loops_by_either(two)) for one, two in zip(base, other, strict=True)]
        tokens = sum(len(record.token_ids) for record in other)
        before, after = (sum(distinct_entries(record.text) for record in records) for records in (base, other))
        return cls(
            answers=len(pairs),
            base=sum(one for one, _ in pairs),
            looped=sum(two for _, two in pairs),
            rescued=pairs.count((True, False)),
            newly=pairs.count((False, True)),
            kinds={kind: (_of_kind(base, kind), _of_kind(other, kind)) for kind in KINDS},
            repeats=(sum(map(ends_in_repeats, base)), sum(map(ends_in_repeats, other))),
            late=1 - sum(map(wasted, other)) / tokens if tokens else math.nan,
            entries=after / before if before else math.nan,
        )


@dataclass(frozen=True)
class Cost:
    """Side effects of a candidate.

    Attributes:
        kl: KL(unpatched || candidate) on reference replies, nats a token, from below (see `evaluation.drift`).
        perplexity: of those replies, over the unpatched model's.
        lost: tasks that only the unpatched model gets right; None where tasks weren't asked.
        won: tasks that only the candidate gets right.
        form: share of the tasks' answers that keep their form: numbered, bulleted or neither.
    """

    kl: float
    perplexity: float
    lost: int | None = None
    won: int | None = None
    form: float | None = None

    @classmethod
    def of(cls, drifts: Sequence[Drift], tasks: Sequence[Tasks]) -> Cost:
        """The figures of some texts, and of tasks where they were asked."""
        moved = healthy(drifts)
        known = (moved.kl.value, moved.perplexity / moved.base_perplexity)
        if not tasks:
            return cls(*known)
        lost, won = (sum(len(part) for part in parts) for parts in ([t.lost for t in tasks], [t.won for t in tasks]))
        return cls(*known, lost, won, sum(one.form for one in tasks) / sum(one.tasks for one in tasks))


@dataclass(frozen=True)
class Measurement:
    """One measurement of one candidate.

    Attributes:
        cost: None where reference replies weren't measured.
    """

    candidate: Candidate
    loops: LoopChange
    cost: Cost | None

    @property
    def kl(self) -> float | None:
        """Its cost in nats a token; None where that wasn't measured, or is no number."""
        return self.cost.kl if self.cost is not None and math.isfinite(self.cost.kl) else None

    def excess(self, settings: SearchSettings) -> list[str]:
        """Bounds that it exceeds, by name; empty where it keeps all."""
        found = [] if self.loops.entries >= MIN_ENTRIES_RATIO or math.isnan(self.loops.entries) else ["entries"]
        if self.cost is None:
            return found
        found += ["kl"] if not self.cost.kl <= settings.max_kl else []
        found += ["perplexity"] if not self.cost.perplexity <= settings.max_perplexity else []
        return found + (["tasks"] if (self.cost.lost or 0) > (self.cost.won or 0) else [])

    def rank(self, settings: SearchSettings) -> tuple[Any, ...]:
        """The sort key of measurements, the best first: fewest loops within the bounds, then the latest, then the cost.

        How late they begin counts in tenths of the tokens: less of it is no reason to pay more. All that are compared
        must be of the same answers.
        """
        kl = math.inf if self.kl is None else self.kl
        late = 0.0 if math.isnan(self.loops.late) else round(self.loops.late, 1)
        return (bool(self.excess(settings)), self.loops.looped, -late, kl, self.candidate.units, self.candidate.id)

    def to_data(self) -> dict[str, Any]:
        """Plain data; what can't be said is null."""
        return {
            "candidate": self.candidate.to_data(),
            "loops": finite(asdict(self.loops)),
            "cost": None if self.cost is None else finite(asdict(self.cost)),
        }


def pareto_front(measures: Sequence[Measurement]) -> list[Measurement]:
    """The Pareto front, by rising KL: each has fewer loops than every one that costs less. All of the same answers."""
    known = [measure for measure in measures if measure.kl is not None]
    best: list[Measurement] = []
    for measure in sorted(known, key=lambda one: (one.kl or 0.0, one.loops.looped)):
        if not best or measure.loops.looped < best[-1].loops.looped:
            best.append(measure)
    return best


def loops_by_either(record: Record) -> bool:
    """True if the detectors or the tail judge say that an answer ends in a loop: what one doesn't see counts too."""
    return loops(record) or ends_in_repeats(record)


def _of_kind(records: Sequence[Record], kind: str) -> int:
    return sum(kind in terminal_kinds(record) for record in records)
