# SPDX-License-Identifier: Apache-2.0
"""Answers to look at: the same probe and seed without and with a patch, side by side, with what repeats marked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_surgery.evaluation.analysis.outcomes import loops
from vllm_surgery.evaluation.arms import UNPATCHED

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vllm_surgery.evaluation.records import Record
    from vllm_surgery.evaluation.trial import Trial

EXAMPLES_PER_SORT = 2
"""Examples of each sort for each patch: enough to see what the figures are about."""
CHARACTERS_SHOWN = 700
"""Characters of an answer that are shown: what loops says no more after them."""
CHARACTERS_BEFORE_LOOP = 150
"""Of them before the loop begins, where it begins late."""


@dataclass(frozen=True)
class Side:
    """One of two answers.

    Attributes:
        said: how it ended.
        before: its text up to where what repeats begins for the second time, the start left out where it is long.
        repeats: the rest, as far as it is shown; empty where the answer has no loop.
    """

    arm: str
    said: str
    before: str
    repeats: str


@dataclass(frozen=True)
class Example:
    """Two answers to one probe.

    Attributes:
        sort: what became of it: rescued, newly looping, or looping in both.
    """

    sort: str
    prompt: str
    cell: str
    seed: int
    sides: tuple[Side, Side]


def examples(trial: Trial, records: Sequence[Record]) -> Iterator[Example]:
    """The first answers of each sort, in the trial's own order, so that nobody chose them."""
    answers = {record.key: record for record in records}
    for arm in trial.arms:
        if arm.kind != "patch":
            continue
        seen = {"rescued": 0, "newly looping": 0, "looping in both": 0}
        for job in trial.jobs(arm):
            first, second = answers.get(job.key._replace(arm=UNPATCHED)), answers.get(job.key)
            if first is None or second is None or trial.sets[job.key.set].use != "loops":
                continue
            sort = _sort(loops(first), loops(second))
            if sort is not None and seen[sort] < EXAMPLES_PER_SORT:
                seen[sort] += 1
                yield Example(sort, job.prompt, job.key.cell, job.key.seed, (_side(first), _side(second)))


def _sort(before: bool, after: bool) -> str | None:
    if before and after:
        return "looping in both"
    return "rescued" if before else "newly looping" if after else None


def _side(record: Record) -> Side:
    loop = min(record.loops, key=lambda found: found.onset, default=None)
    end = "ended by itself" if record.finish == "stop" else "cut by the budget"
    if loop is None:
        return Side(
            record.key.arm, f"no loop, {len(record.token_ids)} tokens, {end}", record.text[:CHARACTERS_SHOWN], ""
        )
    said = f"{loop.kind} loop from token {loop.onset}, {loop.copies:.0f} copies of {loop.period}, {loop.outcome}; {end}"
    place = min(loop.first_copy, len(record.text))
    start = max(0, loop.start - CHARACTERS_BEFORE_LOOP)
    before = ("\u2026" if start else "") + record.text[start:place]
    return Side(
        record.key.arm,
        said,
        before[:CHARACTERS_SHOWN],
        record.text[place : place + max(0, CHARACTERS_SHOWN - len(before))],
    )
