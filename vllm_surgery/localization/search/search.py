# SPDX-License-Identifier: Apache-2.0
"""The search: layers, units, gains, sets. It sees the search's own probes and no others."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from vllm_surgery.errors import CannotSwapError, PatchError
from vllm_surgery.evaluation.analysis.outcomes import Rates
from vllm_surgery.localization.candidates import Candidate, distinct
from vllm_surgery.localization.search.growth import grow, likely, other_gains, pairs, shrink, weaker
from vllm_surgery.localization.search.halving import ROUNDS, affordable, halve, rungs
from vllm_surgery.localization.search.measurements import Measure, front
from vllm_surgery.patch.units import MASK, UnitBlock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from vllm_surgery.evaluation.records import Record
    from vllm_surgery.localization.attribution import Attribution
    from vllm_surgery.localization.search.budget import Budget
    from vllm_surgery.localization.search.evaluator import Lab, Look
    from vllm_surgery.localization.search.measurements import Measure
    from vllm_surgery.localization.settings import SearchSettings
    from vllm_surgery.model.anatomy import Anatomy
    from vllm_surgery.patch.units import Gain, Kind

LAYERS, SINGLES, GAINS, SETS, DOSES, PAIRS, GROWTH = 0.12, 0.38, 0.45, 0.65, 0.8, 0.85, 1.0
"""The share of the budget by which each part of the search is done. Ablating layers only guides, and gradients find
units without it; sets have done most on the demo model."""
WEAKER = (0.5, 0.25)
"""Of an edit that does much and costs too much. Half the change of all gains is about a quarter of the KL."""
LEAST_GAIN = 0.03
"""A fall in the search's own loop rate below that isn't worth a held-out trial. As in the rule of `evaluate`."""


@dataclass
class Found:
    """What a search came to.

    Attributes:
        base: of the unpatched model's answers.
        layers: each block silenced.
        kept: the blocks that matter.
        attribution: what looked worth trying; None where the search ended before.
        looks: how many candidates were looked at in each part.
        measured: all candidates that were looked at as closely as can be, in the order of looking.
        refused: candidates that the model can't take, each with the reason.
        best: the edit to judge; None where there is none.
        why_none: the reason.
    """

    base: Rates
    layers: list[Measure] = field(default_factory=list)
    kept: list[UnitBlock] = field(default_factory=list)
    attribution: Attribution | None = None
    looks: dict[str, int] = field(default_factory=dict)
    measured: list[Measure] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    best: Measure | None = None
    why_none: str | None = None

    @property
    def front(self) -> list[Measure]:
        """The Pareto front of loops against side effects."""
        return front(self.measured)

    def to_data(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "base": {"answers": self.base.answers, "looped": self.base.looped.value, "terminal": self.base.terminal},
            "layers": [one.to_data() for one in self.layers],
            "kept": self.kept,
            "attribution": None if self.attribution is None else self.attribution.to_data(),
            "looks": self.looks,
            "measured": [one.to_data() for one in self.measured],
            "front": [one.candidate.id for one in self.front],
            "refused": self.refused,
            "best": None if self.best is None else self.best.candidate.id,
            "why_none": self.why_none,
        }


class Search:
    """One search.

    Args:
        lab: where candidates are measured.
        anatomy: of the model.
        settings: what may be tried, and what an edit may cost.
        budget: what may be spent.
        attribute: ranks units, given the unpatched model's answers and the blocks that matter.
    """

    def __init__(
        self,
        lab: Lab,
        anatomy: Anatomy,
        settings: SearchSettings,
        budget: Budget,
        attribute: Callable[[Sequence[Record], Sequence[UnitBlock]], Attribution],
    ) -> None:
        self._lab, self._anatomy, self._settings = lab, anatomy, settings
        self._budget, self._attribute = budget, attribute
        self._measured: dict[str, Measure] = {}
        self._refused: set[str] = set()

    def run(self) -> Found:
        """Searches until it is done or the budget is used up.

        Raises:
            SurgeryError: the model can't be swapped, or somebody couldn't answer.
        """
        records = self._lab.baseline()
        self.found = Found(Rates.of(records))
        self._whole = self._budget.used
        if not self.found.base.looped.value:
            self.found.why_none = "no answer of the unpatched model ends in a loop, so there is nothing to cure"
            return self.found
        self._ablate_layers()
        self.found.attribution = self._attribute(records, self.found.kept)
        self._try(self.found.attribution)
        self.found.measured = list(self._measured.values())
        self._choose()
        return self.found

    def _ablate_layers(self) -> None:
        look = rungs(self._lab.everything, ROUNDS + 1)[0]
        for block in blocks(self._anatomy, self._settings.kinds):
            one = self._look("layers", LAYERS, ablation(block), look)
            self.found.layers += [one] if one is not None else []
        self.found.kept = that_matter(self.found.layers) or blocks(self._anatomy, self._settings.kinds)

    def _try(self, attribution: Attribution) -> None:
        """Singles, their other gains, sets, pairs; what is best grows, and loses what it doesn't need."""
        beam = self._settings.beam
        singles = self._halve("singles", SINGLES, attribution.singles[: self._settings.singles])
        best = [one.candidate for one in singles[:beam]]
        gains: list[Gain] = [*self._settings.gains, *([MASK] if self._settings.mask else [])]
        varied = [other for one in best for other in other_gains(one, gains)]
        refined = self._halve("gains", GAINS, distinct(varied), rounds=2)
        best = distinct([*(one.candidate for one in self._ranked([*singles, *refined])), *best])[:beam]
        sets = self._halve("sets", SETS, attribution.sets[: self._settings.sets])
        self._weaken([*sets, *singles, *refined])
        parts = likely(best, attribution.singles, beam)
        self._halve("pairs", PAIRS, pairs(parts))
        self._grow_and_shrink(parts)

    def _weaken(self, measures: Sequence[Measure]) -> None:
        """Edits that leave few loops and cost too much, at lower doses: those with the fewest loops first."""
        dear = [one for one in measures if one.excess(self._settings) and one.candidate.id in self._measured]
        for one in sorted(dear, key=lambda each: (each.loops.looped, *self._rank(each))):
            for dose in WEAKER:
                candidate = weaker(one.candidate, dose)
                if candidate is not None:
                    self._look("doses", DOSES, candidate, self._lab.everything)

    def _grow_and_shrink(self, more: Sequence[Candidate]) -> None:
        whole = self._lab.everything
        start = min(self._measured.values(), key=self._rank, default=None)
        if start is None:
            return
        measure = partial(self._look, "grown", GROWTH, look=whole)
        grown = grow(start, more, self._settings.max_units, measure, self._rank)
        shrink(grown, partial(self._look, "shrunk", GROWTH, look=whole), self._rank)

    def _choose(self) -> None:
        base, settings = self.found.base, self._settings
        allowed = [one for one in self.found.measured if not one.excess(settings)]
        best = min(allowed, key=self._rank, default=None)
        if best is None:
            self.found.why_none = "no candidate that was measured in full stays within the bounds of its side effects"
        elif best.loops.base - best.loops.looped < max(1, LEAST_GAIN * base.answers):
            self.found.why_none = (
                f"the best candidate within the bounds leaves {best.loops.looped} of {best.loops.answers} answers in a "
                f"loop, the unpatched model {best.loops.base}"
            )
        else:
            self.found.best = best

    def _halve(self, part: str, share: float, candidates: Sequence[Candidate], rounds: int = ROUNDS) -> list[Measure]:
        """Successive halving over as many candidates as the budget has room for."""
        room = affordable(max(0.0, share - self._budget.used), self._whole, rounds)
        chosen = candidates[:room]
        looks = rungs(self._lab.everything, rounds)
        return halve(chosen, looks, partial(self._look, part, share), self._rank)

    def _look(self, part: str, share: float, candidate: Candidate, look: Look) -> Measure | None:
        """A measurement, unless the part has used up its share of the budget, or the model can't take the edit."""
        if self._budget.used >= share or candidate.id in self._refused:
            return None
        try:
            one = self._lab.measure(candidate, look)
        except (PatchError, CannotSwapError) as error:
            self._refused.add(candidate.id)
            self.found.refused.append(f"{candidate}: {getattr(error, 'detail', error)}")
            return None
        self.found.looks[part] = self.found.looks.get(part, 0) + 1
        if look == self._lab.everything:
            self._measured[candidate.id] = one
        return one

    def _ranked(self, measures: Sequence[Measure]) -> list[Measure]:
        """Best first. What was looked at longer comes before the rest: more answers say more than fewer loops."""
        return sorted(measures, key=lambda one: (-one.loops.answers, *self._rank(one)))

    def _rank(self, one: Measure) -> tuple[Any, ...]:
        return one.rank(self._settings)


DESTROYED = 3.0
"""Nats a token on sound replies. A model that moved this far speaks another language: no loop there says nothing."""
SHARE = 1 / 3
"""Of the layers that are kept, where so many make a difference."""
LEAST = 4


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


def that_matter(measures: Sequence[Measure]) -> list[UnitBlock]:
    """The blocks without which there are fewer loops in a language that is still the model's, the best first.

    All of them where none is: two blocks that do the same aren't found by silencing one.
    """
    told = [one for one in measures if one.loops.looped < one.loops.base and one.kl is not None and one.kl < DESTROYED]
    ranked = sorted(told, key=lambda one: (one.loops.looped, one.kl or 0.0, one.candidate.gains))
    kept = ranked[: max(LEAST, math.ceil(len(measures) * SHARE))] or list(measures)
    return [block_of(one.candidate) for one in kept]
