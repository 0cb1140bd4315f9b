# SPDX-License-Identifier: Apache-2.0
"""The rule by which a patch is called a help. It was written before any answer was seen, and every report prints it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm_surgery.evaluation.analysis.outcomes import Rates
    from vllm_surgery.evaluation.analysis.side_effects import Ordinary, Tasks
    from vllm_surgery.evaluation.analysis.statistics import Paired
    from vllm_surgery.intervals import Estimate

Word: TypeAlias = Literal["fewer loops", "fewer loops, at a cost", "more loops", "no effect shown"]

MIN_SUBJECTS = 6
"""Subjects that it takes to show an effect: from so many on, chance is called a help less often than the 2.5 % that the
interval leaves it (`tests/benchmarks/few_subjects.py`), and a sign-flip test over them can have a p below 5 %."""
MIN_RATE_DROP = 0.03
"""Three points of the loop rate: a smaller gain is no reason to ship an edit. (As Weights Warden.)"""
MAX_TASK_LOSS = 0.03
"""Of all tasks: a smaller loss is no reason to refuse an edit."""
MIN_ENTRIES_RATIO = 0.75
"""An answer that stops after two entries has no loop either. A quarter less is what a cure may cost lists."""

RULE = (
    "Judged are all answers to probes that are for loops, except those of a search half, all cells together; an answer "
    "counts if it ends in a loop of any kind. **Fewer loops** if all of these hold: (1) the answers are about at "
    "least 6 subjects (a probe that names none is one), the rate falls by at least 3 points, and its 95 % interval, "
    "from a bootstrap over subjects, lies below 0 (where all change alike there is none, and the change counts); (2) "
    "the rate of answers that were ever in a loop falls too; (3) the rate is lower than under the shams of the patch "
    "taken together, and that interval lies below 0 as well. **At a cost** if moreover one of these doesn't hold: (4) "
    "short lists and skills that were right, less those that became right, are at most 3 % of all; (5) no more of the "
    "healthy prompts end in a loop; (6) the middle answer still has three quarters of its different entries. **More "
    "loops** if the interval of (1) lies above 0, over as many subjects. Else **no effect shown**."
)


@dataclass(frozen=True)
class Condition:
    """One part of the rule.

    Attributes:
        says: the condition, with the figure.
        holds: None where nothing was asked that could tell.
    """

    says: str
    holds: bool | None


@dataclass(frozen=True)
class Verdict:
    """The rule's word on one patch."""

    word: Word
    conditions: list[Condition]


@dataclass(frozen=True)
class Evidence:
    """The figures that the rule looks at.

    Attributes:
        ends: answers that end in a loop, unpatched and patched.
        ever: answers that were ever in one.
        against_shams: answers that end in a loop, under each sham and patched; None without shams.
        tasks: of each set of short lists and skills.
        ordinary: healthy prompts, unpatched and patched.
        rates: of the judged answers, unpatched and patched.
    """

    ends: Paired
    ever: Paired
    against_shams: Paired | None
    tasks: Sequence[Tasks]
    ordinary: tuple[Ordinary, Ordinary] | None
    rates: tuple[Rates, Rates]


def judge(evidence: Evidence) -> Verdict:
    """Applies `RULE`."""
    effect = [_falls(evidence.ends), _falls_too(evidence.ever), _beats_shams(evidence.against_shams)]
    costs = [_keeps_tasks(evidence.tasks), _keeps_ordinary(evidence.ordinary), _keeps_entries(*evidence.rates)]
    if all(condition.holds for condition in effect):
        clean = all(condition.holds is not False for condition in costs)
        return Verdict("fewer loops" if clean else "fewer loops, at a cost", effect + costs)
    rises = _is_enough(evidence.ends) and _is_above_0(evidence.ends.difference)
    return Verdict("more loops" if rises else "no effect shown", effect + costs)


def _falls(ends: Paired) -> Condition:
    found = ends.difference
    enough = _is_enough(ends)
    says = f"the rate changes by {_points(found.value)} ({_range(found)})"
    says += "" if enough else f", but too few subjects to show an effect: {ends.clusters} of at least {MIN_SUBJECTS}"
    return Condition(f"(1) {says}", enough and found.value <= -MIN_RATE_DROP and _is_below_0(found))


def _falls_too(ever: Paired) -> Condition:
    return Condition(f"(2) of answers ever in a loop by {_points(ever.difference.value)}", ever.difference.value < 0)


def _beats_shams(against: Paired | None) -> Condition:
    if against is None:
        return Condition("(3) no shams were asked", None)
    found = against.difference
    says = f"against shams by {_points(found.value)} ({_range(found)})"
    return Condition(f"(3) {says}", _is_below_0(found))


def _keeps_tasks(tasks: Sequence[Tasks]) -> Condition:
    total = sum(one.tasks for one in tasks)
    lost, won = (sum(len(part) for part in parts) for parts in ([t.lost for t in tasks], [t.won for t in tasks]))
    if not total:
        return Condition("(4) no short lists or skills were asked", None)
    return Condition(
        f"(4) of {total} short lists and skills {lost} lost, {won} won", lost - won <= MAX_TASK_LOSS * total
    )


def _keeps_ordinary(ordinary: tuple[Ordinary, Ordinary] | None) -> Condition:
    if ordinary is None:
        return Condition("(5) no healthy prompts were asked", None)
    before, after = (round(one.rates.looped.value * one.rates.answers) for one in ordinary)
    says = f"of {ordinary[0].rates.answers} healthy answers {before} end in a loop unpatched, {after} patched"
    return Condition(f"(5) {says}", after <= before)


def _keeps_entries(before: Rates, after: Rates) -> Condition:
    says = f"the middle answer has {after.entries:g} different entries instead of {before.entries:g}"
    return Condition(f"(6) {says}", after.entries >= MIN_ENTRIES_RATIO * before.entries)


def _is_enough(paired: Paired) -> bool:
    return paired.clusters >= MIN_SUBJECTS


def _is_below_0(found: Estimate) -> bool:
    """True of a whole interval; without one, where all subjects change alike, of that change."""
    return (found.value if math.isnan(found.high) else found.high) < 0


def _is_above_0(found: Estimate) -> bool:
    return (found.value if math.isnan(found.low) else found.low) > 0


def _range(found: Estimate) -> str:
    return "no interval" if math.isnan(found.low) else f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"


def _points(value: float) -> str:
    return f"{100 * value:+.1f} points"
