# SPDX-License-Identifier: Apache-2.0
"""The choice among the edits that a search found, on prompts that it never saw: by number of units, beside shams.

What a search ranks by flatters what it ranks first. So the best of each size is measured once more on probes, tasks and
replies of their own, with longer answers, and the one to be judged is chosen by these figures: of those that do about
as well the one with the fewest units.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vllm_surgery.errors import SurgeryError, UsageError
from vllm_surgery.evaluation.analysis.verdict import MIN_RATE_DROP
from vllm_surgery.evaluation.shams import make_shams
from vllm_surgery.localization.candidates import Candidate, distinct
from vllm_surgery.localization.search.measurements import Measurement

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vllm_surgery.localization.search.evaluator import CandidateEvaluator
    from vllm_surgery.localization.settings import SearchSettings
    from vllm_surgery.model.checkpoint import ModelFolder

SIZES = (1, 3, 10, 30, 100, 300)
"""Numbers of units up to which the best edit is a finalist each: the fewer, the more can be said of what loops are."""
BEST_OF_ALL = 3
"""Finalists besides, whatever their size."""
MIN_GAIN = 0.02
"""Share of the answers by which a larger edit must leave fewer loops to be taken before a smaller one."""


@dataclass(frozen=True)
class Finalist:
    """An edit that may be chosen.

    Attributes:
        found: on the search's probes.
        chosen_by: on the choice's.
        sham: as many random units of the same layers, with the same gains, on the choice's probes; None where the
            layers leave no room for one, or the model can't take it.
    """

    found: Measurement
    chosen_by: Measurement
    sham: Measurement | None

    def to_data(self) -> dict[str, Any]:
        """Plain data."""
        sham = None if self.sham is None else self.sham.to_data()
        return {"search": self.found.to_data(), "choice": self.chosen_by.to_data(), "sham": sham}


@dataclass
class Choice:
    """A choice.

    Attributes:
        finalists: by number of units.
        chosen: the edit to judge; None where there is none.
        why_none: the reason.
        notes: what couldn't be measured.
    """

    finalists: list[Finalist] = field(default_factory=list)
    chosen: Finalist | None = None
    why_none: str | None = None
    notes: list[str] = field(default_factory=list)

    def to_data(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "finalists": [one.to_data() for one in self.finalists],
            "chosen": None if self.chosen is None else self.chosen.found.candidate.id,
            "why_none": self.why_none,
            "notes": self.notes,
        }


def finalists_of(measured: Sequence[Measurement], settings: SearchSettings) -> list[Measurement]:
    """The best edit of each size, and the best of all, by number of units.

    Of those within the bounds of a search's probes that leave fewer loops there: what does nothing where it was found
    and something elsewhere owes that to chance.
    """
    helping = (one for one in measured if not one.excess(settings) and one.loops.looped < one.loops.base)
    ranked = sorted(helping, key=lambda one: one.rank(settings))
    kept = ranked[:BEST_OF_ALL]
    least = 1
    for most in SIZES:
        kept += [one for one in ranked if least <= one.candidate.units <= most][:1]
        least = most + 1
    by_id = {one.candidate.id: one for one in kept}
    return sorted(by_id.values(), key=lambda one: (one.candidate.units, one.rank(settings)))


def choose(
    measured: Sequence[Measurement],
    evaluator: CandidateEvaluator,
    settings: SearchSettings,
    model: ModelFolder,
    guard: Mapping[str, Any],
) -> Choice:
    """Measures the finalists on the choice's probes, and chooses.

    Args:
        measured: candidates that the search measured in full.
        evaluator: of the choice's probes.
        settings: of the search.
        model: its folder, which shams are drawn from.
        guard: of the candidates' patches.

    Raises:
        SurgeryError: somebody couldn't answer.
    """
    evaluator.baseline()
    choice = Choice()
    found = finalists_of(measured, settings)
    shams = {one.candidate.id: _sham(one.candidate, settings, model, guard, choice.notes) for one in found}
    wanted = distinct([*(one.candidate for one in found), *(one for one in shams.values() if one is not None)])
    known = _measured(wanted, evaluator, choice.notes)
    for one in found:
        sham = shams[one.candidate.id]
        if (again := known.get(one.candidate.id)) is not None:
            choice.finalists.append(Finalist(one, again, None if sham is None else known.get(sham.id)))
    choice.chosen, choice.why_none = _best(choice.finalists, settings)
    return choice


def _sham(
    candidate: Candidate, settings: SearchSettings, model: ModelFolder, guard: Mapping[str, Any], notes: list[str]
) -> Candidate | None:
    try:
        (sham,) = make_shams(candidate.patch("finalist", guard), model, 1, settings.seed)
    except UsageError as error:
        notes.append(f"{candidate}: no sham: {error}")
        return None
    # A search tries gains alone, so its shams have nothing else.
    gains = {unit: gain for unit, gain in sham.units.items() if isinstance(gain, float | str)}
    return Candidate.of(gains, "sham")


def _measured(
    candidates: Sequence[Candidate], evaluator: CandidateEvaluator, notes: list[str]
) -> dict[str, Measurement]:
    """Each candidate in full, as many side by side as there is room for; without those that the model can't take."""
    found: dict[str, Measurement] = {}
    for start in range(0, len(candidates), evaluator.room):
        group = candidates[start : start + evaluator.room]
        for candidate, one in zip(group, evaluator.measure_all(group, evaluator.full_fidelity), strict=True):
            if isinstance(one, Measurement):
                found[candidate.id] = one
            else:
                assert isinstance(one, SurgeryError)
                notes.append(f"{candidate}: {one}")
    return found


def _best(finalists: Sequence[Finalist], settings: SearchSettings) -> tuple[Finalist | None, str | None]:
    """Of the finalists that help the smallest that leaves hardly more loops than the best; or why there is none.

    An edit helps that stays within the bounds and leaves fewer loops than its sham: what random units do as well isn't
    worth the held-out probes, which can be asked once.
    """
    within = [one for one in finalists if not one.chosen_by.excess(settings)]
    if not within:
        return None, "no edit that was found stays within the bounds of its side effects on the choice's probes"
    allowed = [one for one in within if one.sham is None or one.chosen_by.loops.looped < one.sham.loops.looped]
    best = min(allowed or within, key=lambda one: one.chosen_by.rank(settings)).chosen_by.loops
    if best.base - best.looped < max(1, MIN_RATE_DROP * best.answers):
        return None, (
            f"on the choice's probes the best edit leaves {best.looped} of {best.answers} answers in a loop, the "
            f"unpatched model {best.base}"
        )
    if not allowed:
        return None, "on the choice's probes no edit within the bounds leaves fewer answers in a loop than its sham"
    most = best.looped + MIN_GAIN * best.answers
    near = [one for one in allowed if one.chosen_by.loops.looped <= most]
    return min(near, key=lambda one: (one.found.candidate.units, one.chosen_by.rank(settings))), None
