# SPDX-License-Identifier: Apache-2.0
"""The search: layers, units, gains, sets. It sees the search's own probes and no others."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from vllm_surgery.evaluation.analysis.outcomes import Rates
from vllm_surgery.evaluation.analysis.verdict import MIN_RATE_DROP
from vllm_surgery.localization.candidates import Candidate, distinct
from vllm_surgery.localization.search.budget import Asked
from vllm_surgery.localization.search.growth import grow, other_gains, pair_parts, pairs, shrink, weaker
from vllm_surgery.localization.search.halving import ROUNDS, affordable, halve, looks, rungs
from vllm_surgery.localization.search.measurements import Measurement, loops_by_either, pareto_front
from vllm_surgery.localization.search.stages import BASELINE_SHARE, REST, UNITS
from vllm_surgery.patch.units import MASK, UnitBlock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from vllm_surgery.evaluation.records import Record, Way
    from vllm_surgery.localization.attribution import Attribution
    from vllm_surgery.localization.search.evaluator import CandidateEvaluator, Fidelity
    from vllm_surgery.localization.search.stages import Stages
    from vllm_surgery.localization.settings import SearchSettings
    from vllm_surgery.model.anatomy import Anatomy
    from vllm_surgery.patch.units import Gain, Kind

DOSES = (0.5, 0.25)
"""Of an edit that does much and costs too much. Half the change of all gains is about a quarter of the KL."""


@dataclass
class SearchResult:
    """The result of a search.

    Attributes:
        base: of the unpatched model's answers, by the detectors.
        looping: how many of them end in a loop, say the detectors or the second judge.
        layers: each block silenced.
        kept: the blocks that matter.
        attribution: what looked worth trying; None where the search ended before.
        evaluations: how many candidates were measured in each part.
        measured: all candidates that were measured at full fidelity, in the order of measuring.
        untried: how many candidates of each part nobody looked at, for want of budget.
        spent: of each part, the seconds and the answers.
        ways: how many measurements were made by slots, and how many by swaps.
        notes: what else was left out, or done in another way.
        refused: candidates that the model can't take, each with the reason.
        best: the edit to judge; None where there is none.
        why_none: the reason.
    """

    base: Rates
    looping: int
    layers: list[Measurement] = field(default_factory=list)
    kept: list[UnitBlock] = field(default_factory=list)
    attribution: Attribution | None = None
    evaluations: dict[str, int] = field(default_factory=dict)
    untried: dict[str, int] = field(default_factory=dict)
    spent: dict[str, tuple[float, int]] = field(default_factory=dict)
    ways: dict[Way, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    measured: list[Measurement] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    best: Measurement | None = None
    why_none: str | None = None

    @property
    def front(self) -> list[Measurement]:
        """The Pareto front of loops against side effects."""
        return pareto_front(self.measured)

    def to_data(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "base": {
                "answers": self.base.answers,
                "looped": self.base.looped.value,
                "terminal": self.base.terminal,
                "looping": self.looping,
            },
            "layers": [one.to_data() for one in self.layers],
            "kept": self.kept,
            "attribution": None if self.attribution is None else self.attribution.to_data(),
            "looks": self.evaluations,
            "untried": self.untried,
            "spent": {part: {"seconds": each[0], "answers": each[1]} for part, each in self.spent.items()},
            "ways": self.ways,
            "notes": self.notes,
            "measured": [one.to_data() for one in self.measured],
            "front": [one.candidate.id for one in self.front],
            "refused": self.refused,
            "best": None if self.best is None else self.best.candidate.id,
            "why_none": self.why_none,
        }


class Search:
    """One search.

    Args:
        evaluator: where candidates are measured.
        anatomy: of the model.
        settings: what may be tried, and what an edit may cost.
        stages: what may be spent, and on which part.
        attribute: ranks units, given the unpatched model's answers, the blocks that matter, and the seconds that it may
            take.
    """

    def __init__(
        self,
        evaluator: CandidateEvaluator,
        anatomy: Anatomy,
        settings: SearchSettings,
        stages: Stages,
        attribute: Callable[[Sequence[Record], Sequence[UnitBlock], float], Attribution],
    ) -> None:
        self._evaluator, self._anatomy, self._settings = evaluator, anatomy, settings
        self._budget, self._stages, self._attribute = stages.budget, stages, attribute
        self._measured: dict[str, Measurement] = {}
        self._seen: set[str] = set()
        self._refused: set[str] = set()
        self._planned: dict[str, Sequence[Candidate]] = {}

    def run(self) -> SearchResult:
        """Searches until it is done or the budget is used up.

        Raises:
            SurgeryError: the model can't be swapped, or somebody couldn't answer.
        """
        records = self._evaluator.baseline(BASELINE_SHARE)
        self.result = SearchResult(Rates.of(records), sum(map(loops_by_either, records)))
        if self._evaluator.left_out:
            self.result.notes.append(
                f"{self._evaluator.left_out} sampled answers to each candidate were left out: the unpatched model's "
                "took a quarter of the budget without them"
            )
        if self.result.looping:
            self._look_for_units(records)
        else:
            self.result.why_none = "no answer of the unpatched model ends in a loop, so there is nothing to cure"
        self._stages.close()
        self.result.spent, self.result.ways = self._stages.spent, self._evaluator.spending.ways
        if why := self._evaluator.spending.why_swapped:
            self.result.notes.append(f"no slot can hold some candidates, which were swapped in: {why[0]}")
        return self.result

    def _costs(self, fidelities: Sequence[Fidelity]) -> list[float]:
        """The share of the budget that a candidate costs in each round, beside what earlier rounds know of it."""
        tasks = len(self._evaluator.task_jobs)
        known = [Asked(), *(Asked(one.answers, tasks if one.tasks else 0) for one in fidelities)]
        return [self._budget.after(more.minus(less)) - self._budget.used for less, more in pairwise(known)]

    def _look_for_units(self, records: Sequence[Record]) -> None:
        self._ablate_layers()
        self._stages.enter(UNITS, 1)
        attribution = self._attribute(records, self.result.kept, self._stages.seconds_left(UNITS))
        self._budget.spend(attribution.seconds, Asked())
        self.result.attribution = attribution
        self._try(attribution)
        self._count_untried()
        self.result.measured = list(self._measured.values())
        self._choose()

    def _ablate_layers(self) -> None:
        fidelity = rungs(self._evaluator.full_fidelity, ROUNDS + 1)[0]
        silenced = [ablation(block) for block in blocks(self._anatomy, self._settings.kinds)]
        self._stages.enter("layers", len(silenced))
        found = self._measure_all("layers", silenced, fidelity)
        self.result.layers = [one for one in found if one is not None]
        self.result.kept = blocks_reducing_loops(self.result.layers) or blocks(self._anatomy, self._settings.kinds)

    def _try(self, attribution: Attribution) -> None:
        """Singles, their other gains, sets, pairs; what is best grows, and loses what it doesn't need.

        Then those that there had been no room for, if the others left some budget: sets first, which have done most.
        """
        beam = self._settings.beam
        singles = self._halve("singles", attribution.singles[: self._settings.singles])
        best = [one.candidate for one in singles[:beam]]
        gains: list[Gain] = [*self._settings.gains, *([MASK] if self._settings.mask else [])]
        varied = [other for one in best for other in other_gains(one, gains)]
        refined = self._halve("gains", distinct(varied), rounds=2)
        best = distinct([*(one.candidate for one in self._ranked([*singles, *refined])), *best])[:beam]
        sets = self._halve("sets", attribution.sets[: self._settings.sets])
        self._weaken([*sets, *singles, *refined])
        parts = pair_parts(best, attribution.singles, beam)
        self._halve("pairs", pairs(parts))
        self._grow_and_shrink(parts)
        self._halve(REST, [one for part in ("sets", "singles") for one in self._untried(part)])

    def _weaken(self, measures: Sequence[Measurement]) -> None:
        """Edits that leave few loops and cost too much, at lower doses: those with the fewest loops first."""
        dear = [one for one in measures if one.excess(self._settings) and one.candidate.id in self._measured]
        ranked = sorted(dear, key=lambda each: (each.loops.looped, *self._rank(each)))
        doses = [weaker(one.candidate, dose) for one in ranked for dose in DOSES]
        fitting = [one for one in doses if one is not None]
        self._planned["doses"] = fitting
        self._stages.enter("doses", len(fitting))
        self._measure_all("doses", fitting, self._evaluator.full_fidelity)

    def _grow_and_shrink(self, more: Sequence[Candidate]) -> None:
        start = min(self._measured.values(), key=self._rank, default=None)
        if start is None:
            return
        full = self._evaluator.full_fidelity
        self._stages.enter("grown", self._settings.max_units * max(1, len(more)))
        adding = partial(self._measure_all, "grown", fidelity=full)
        grown = grow(start, more, self._settings.max_units, adding, self._rank)
        self._stages.enter("shrunk", grown.candidate.units)
        shrink(grown, lambda smaller: self._measure_all("shrunk", [smaller], full)[0], self._rank)

    def _choose(self) -> None:
        base, settings = self.result.base, self._settings
        allowed = [one for one in self.result.measured if not one.excess(settings)]
        best = min(allowed, key=self._rank, default=None)
        if not self.result.measured:
            self.result.why_none = self._why_none_in_full()
        elif best is None:
            self.result.why_none = "no candidate that was measured in full stays within the bounds of its side effects"
        elif best.loops.base - best.loops.looped < max(1, MIN_RATE_DROP * base.answers):
            self.result.why_none = (
                f"the best candidate within the bounds leaves {best.loops.looped} of {best.loops.answers} answers in a "
                f"loop, the unpatched model {best.loops.base}"
            )
        else:
            self.result.best = best

    def _why_none_in_full(self) -> str:
        """Why nothing was measured in full. Nothing is said of candidates that nobody tried."""
        assert self.result.attribution is not None
        tried = len(self._seen)
        if tried:
            return f"of {tried} candidates that were tried none was measured in full before the budget was used up"
        if self.result.untried:
            self._stages.close()
            spent = ", ".join(f"{part} {said}" for part, said in told_spent(self._stages.spent).items())
            return f"no candidate was tried: the budget was used up before ({spent})"
        if self.result.refused:
            return f"the model can't take any of the candidates: {self.result.refused[-1]}"
        notes = "; ".join(self.result.attribution.notes)
        return "no unit was found that is worth a try" + (f": {notes}" if notes else "")

    def _halve(self, part: str, candidates: Sequence[Candidate], rounds: int = ROUNDS) -> list[Measurement]:
        """Successive halving over as many candidates as the budget has room for."""
        self._planned[part] = candidates
        fidelities = rungs(self._evaluator.full_fidelity, rounds)
        room = affordable(self._stages.left(part), self._costs(fidelities))
        tried = candidates[:room]
        self._stages.enter(part, looks(len(tried), rounds))
        return halve(tried, fidelities, partial(self._measure_all, part), self._rank)

    def _untried(self, part: str) -> list[Candidate]:
        """Those of a part's candidates that nobody looked at: the budget had no room for them."""
        return [one for one in distinct(self._planned[part]) if one.id not in self._seen | self._refused]

    def _count_untried(self) -> None:
        untried = {part: len(self._untried(part)) for part in self._planned if part != REST}
        self.result.untried = {part: count for part, count in untried.items() if count}

    def _measure_all(self, part: str, candidates: Sequence[Candidate], fidelity: Fidelity) -> list[Measurement | None]:
        """A measurement of each, unless the part has used up its share of the budget, or the model can't take it."""
        found: dict[str, Measurement] = {}
        left = [one for one in distinct(candidates) if one.id not in self._refused]
        while left and not self._stages.is_over(part):
            group = self._side_by_side(part, left, fidelity)
            left = left[len(group) :]
            for candidate, one in zip(group, self._evaluator.measure_all(group, fidelity), strict=True):
                self._stages.step()
                if isinstance(one, Measurement):
                    found[candidate.id] = one
                    self._note(part, one, fidelity)
                else:
                    self._refused.add(candidate.id)
                    self.result.refused.append(f"{candidate}: {getattr(one, 'detail', one)}")
        return [found.get(one.id) for one in candidates]

    def _note(self, part: str, one: Measurement, fidelity: Fidelity) -> None:
        self.result.evaluations[part] = self.result.evaluations.get(part, 0) + 1
        if part != "layers":
            self._seen.add(one.candidate.id)
        if fidelity == self._evaluator.full_fidelity:
            self._measured[one.candidate.id] = one

    def _side_by_side(self, part: str, left: Sequence[Candidate], fidelity: Fidelity) -> list[Candidate]:
        """The next candidates to measure: those that would be measured too if it went one by one."""
        spending = self._evaluator.spending
        if before := spending.side_by_side([one.id for one in left], fidelity):
            return list(left[:before])
        group, asked = left[:1], self._evaluator.answers_missing(left[0], fidelity)
        for one in left[1 : self._evaluator.room]:
            if self._budget.after(asked) >= self._stages.bound(part) or spending.is_to_be_paid(one.id, fidelity):
                break
            group = [*group, one]
            asked = asked.plus(self._evaluator.answers_missing(one, fidelity))
        return list(group)

    def _ranked(self, measures: Sequence[Measurement]) -> list[Measurement]:
        """Best first. What was measured more closely comes before the rest: more answers say more than fewer loops."""
        return sorted(measures, key=lambda one: (-one.loops.answers, *self._rank(one)))

    def _rank(self, one: Measurement) -> tuple[Any, ...]:
        return one.rank(self._settings)


def told_spent(spent: Mapping[str, tuple[float, int]]) -> dict[str, str]:
    """What each part of a search took, in words."""
    return {
        part: f"{seconds / 60:.1f} minutes" + (f" and {answers} answers" if answers else "")
        for part, (seconds, answers) in spent.items()
        if seconds or answers
    }


DESTROYED_KL = 3.0
"""Nats a token on reference replies. A model that moved this far speaks another language, with or without loops."""
BLOCKS_KEPT_SHARE, MIN_BLOCKS_KEPT = 1 / 3, 4
"""Of all blocks, and at least so many, those that reduce loops the most are preferred."""


def blocks(anatomy: Anatomy, kinds: Iterable[Kind]) -> list[UnitBlock]:
    """Every layer's MLP and its routed experts, as far as units of these kinds are to be tried."""
    return [UnitBlock(kind, layer) for kind in kinds for layer in sorted(anatomy.counts(kind))]


def ablation(block: UnitBlock) -> Candidate:
    """All units of a block silenced."""
    return Candidate.of({block: 0.0}, "layer")


def block_of(candidate: Candidate) -> UnitBlock:
    """The block of a candidate's first unit."""
    target = candidate.gains[0][0]
    return UnitBlock(target.kind, target.layer)


def blocks_reducing_loops(measures: Sequence[Measurement]) -> list[UnitBlock]:
    """The blocks without which there are fewer loops in a language that is still the model's, the best first.

    All of them where none is: two blocks that do the same aren't found by silencing one.
    """
    told = [
        one for one in measures if one.loops.looped < one.loops.base and one.kl is not None and one.kl < DESTROYED_KL
    ]
    ranked = sorted(told, key=lambda one: (one.loops.looped, one.kl or 0.0, one.candidate.gains))
    kept = ranked[: max(MIN_BLOCKS_KEPT, math.ceil(len(measures) * BLOCKS_KEPT_SHARE))] or list(measures)
    return [block_of(one.candidate) for one in kept]
