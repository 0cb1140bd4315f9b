# SPDX-License-Identifier: Apache-2.0
"""The search: layers, units, gains, sets. It sees the search's own probes and no others."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from vllm_surgery.errors import CannotSwapError, PatchError
from vllm_surgery.evaluation.analysis.outcomes import Rates
from vllm_surgery.evaluation.analysis.verdict import MIN_RATE_DROP
from vllm_surgery.localization.candidates import Candidate, distinct
from vllm_surgery.localization.search.growth import grow, other_gains, pair_parts, pairs, shrink, weaker
from vllm_surgery.localization.search.halving import ROUNDS, affordable, halve, rungs
from vllm_surgery.localization.search.measurements import Measurement, pareto_front
from vllm_surgery.patch.units import MASK, UnitBlock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from vllm_surgery.evaluation.records import Record
    from vllm_surgery.localization.attribution import Attribution
    from vllm_surgery.localization.search.budget import Budget
    from vllm_surgery.localization.search.evaluator import CandidateEvaluator, Fidelity
    from vllm_surgery.localization.search.measurements import Measurement
    from vllm_surgery.localization.settings import SearchSettings
    from vllm_surgery.model.anatomy import Anatomy
    from vllm_surgery.patch.units import Gain, Kind

BUDGET_SHARES = {
    "layers": 0.12, "singles": 0.38, "gains": 0.45, "sets": 0.65, "doses": 0.8, "pairs": 0.85, "grown": 1, "shrunk": 1,
}  # fmt: skip
"""The share of the budget by which each part of the search is done. Ablating layers only guides, and gradients find
units without it; sets have done most on the demo model."""
DOSES = (0.5, 0.25)
"""Of an edit that does much and costs too much. Half the change of all gains is about a quarter of the KL."""


@dataclass
class SearchResult:
    """The result of a search.

    Attributes:
        base: of the unpatched model's answers.
        layers: each block silenced.
        kept: the blocks that matter.
        attribution: what looked worth trying; None where the search ended before.
        evaluations: how many candidates were measured in each part.
        measured: all candidates that were measured at full fidelity, in the order of measuring.
        refused: candidates that the model can't take, each with the reason.
        best: the edit to judge; None where there is none.
        why_none: the reason.
    """

    base: Rates
    layers: list[Measurement] = field(default_factory=list)
    kept: list[UnitBlock] = field(default_factory=list)
    attribution: Attribution | None = None
    evaluations: dict[str, int] = field(default_factory=dict)
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
            "base": {"answers": self.base.answers, "looped": self.base.looped.value, "terminal": self.base.terminal},
            "layers": [one.to_data() for one in self.layers],
            "kept": self.kept,
            "attribution": None if self.attribution is None else self.attribution.to_data(),
            "looks": self.evaluations,
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
        budget: what may be spent.
        attribute: ranks units, given the unpatched model's answers and the blocks that matter.
    """

    def __init__(
        self,
        evaluator: CandidateEvaluator,
        anatomy: Anatomy,
        settings: SearchSettings,
        budget: Budget,
        attribute: Callable[[Sequence[Record], Sequence[UnitBlock]], Attribution],
    ) -> None:
        self._evaluator, self._anatomy, self._settings = evaluator, anatomy, settings
        self._budget, self._attribute = budget, attribute
        self._measured: dict[str, Measurement] = {}
        self._refused: set[str] = set()

    def run(self) -> SearchResult:
        """Searches until it is done or the budget is used up.

        Raises:
            SurgeryError: the model can't be swapped, or somebody couldn't answer.
        """
        records = self._evaluator.baseline()
        self.result = SearchResult(Rates.of(records))
        self._full_cost = self._budget.used
        if not self.result.base.looped.value:
            self.result.why_none = "no answer of the unpatched model ends in a loop, so there is nothing to cure"
            return self.result
        self._ablate_layers()
        self.result.attribution = self._attribute(records, self.result.kept)
        self._try(self.result.attribution)
        self.result.measured = list(self._measured.values())
        self._choose()
        return self.result

    def _ablate_layers(self) -> None:
        fidelity = rungs(self._evaluator.full_fidelity, ROUNDS + 1)[0]
        for block in blocks(self._anatomy, self._settings.kinds):
            one = self._measure("layers", ablation(block), fidelity)
            self.result.layers += [one] if one is not None else []
        self.result.kept = blocks_reducing_loops(self.result.layers) or blocks(self._anatomy, self._settings.kinds)

    def _try(self, attribution: Attribution) -> None:
        """Singles, their other gains, sets, pairs; what is best grows, and loses what it doesn't need."""
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

    def _weaken(self, measures: Sequence[Measurement]) -> None:
        """Edits that leave few loops and cost too much, at lower doses: those with the fewest loops first."""
        dear = [one for one in measures if one.excess(self._settings) and one.candidate.id in self._measured]
        for one in sorted(dear, key=lambda each: (each.loops.looped, *self._rank(each))):
            for dose in DOSES:
                candidate = weaker(one.candidate, dose)
                if candidate is not None:
                    self._measure("doses", candidate, self._evaluator.full_fidelity)

    def _grow_and_shrink(self, more: Sequence[Candidate]) -> None:
        start = min(self._measured.values(), key=self._rank, default=None)
        if start is None:
            return
        measure, full = self._measure, self._evaluator.full_fidelity
        adding = partial(measure, "grown", fidelity=full)
        grown = grow(start, more, self._settings.max_units, adding, self._rank)
        shrink(grown, partial(measure, "shrunk", fidelity=full), self._rank)

    def _choose(self) -> None:
        base, settings = self.result.base, self._settings
        allowed = [one for one in self.result.measured if not one.excess(settings)]
        best = min(allowed, key=self._rank, default=None)
        if best is None:
            self.result.why_none = "no candidate that was measured in full stays within the bounds of its side effects"
        elif best.loops.base - best.loops.looped < max(1, MIN_RATE_DROP * base.answers):
            self.result.why_none = (
                f"the best candidate within the bounds leaves {best.loops.looped} of {best.loops.answers} answers in a "
                f"loop, the unpatched model {best.loops.base}"
            )
        else:
            self.result.best = best

    def _halve(self, part: str, candidates: Sequence[Candidate], rounds: int = ROUNDS) -> list[Measurement]:
        """Successive halving over as many candidates as the budget has room for."""
        room = affordable(max(0.0, BUDGET_SHARES[part] - self._budget.used), self._full_cost, rounds)
        fidelities = rungs(self._evaluator.full_fidelity, rounds)
        return halve(candidates[:room], fidelities, partial(self._measure, part), self._rank)

    def _measure(self, part: str, candidate: Candidate, fidelity: Fidelity) -> Measurement | None:
        """A measurement, unless the part has used up its share of the budget, or the model can't take the edit."""
        if self._budget.used >= BUDGET_SHARES[part] or candidate.id in self._refused:
            return None
        try:
            one = self._evaluator.measure(candidate, fidelity)
        except (PatchError, CannotSwapError) as error:
            self._refused.add(candidate.id)
            self.result.refused.append(f"{candidate}: {getattr(error, 'detail', error)}")
            return None
        self.result.evaluations[part] = self.result.evaluations.get(part, 0) + 1
        if fidelity == self._evaluator.full_fidelity:
            self._measured[candidate.id] = one
        return one

    def _ranked(self, measures: Sequence[Measurement]) -> list[Measurement]:
        """Best first. What was measured more closely comes before the rest: more answers say more than fewer loops."""
        return sorted(measures, key=lambda one: (-one.loops.answers, *self._rank(one)))

    def _rank(self, one: Measurement) -> tuple[Any, ...]:
        return one.rank(self._settings)


DESTROYED_KL = 3.0
"""Nats a token on reference replies. A model that moved this far speaks another language, with or without loops."""
BLOCKS_KEPT_SHARE, MIN_BLOCKS_KEPT = 1 / 3, 4
"""Of all blocks, and at least so many, those that reduce loops the most are preferred."""


def blocks(anatomy: Anatomy, kinds: Iterable[Kind]) -> list[UnitBlock]:
    """Every layer's MLP and its routed experts, as far as units of these kinds are to be tried."""
    found: dict[Kind, Iterable[int]] = {"neurons": anatomy.widths(), "experts": anatomy.expert_counts()}
    return [UnitBlock(kind, layer) for kind in kinds for layer in sorted(found[kind])]


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
