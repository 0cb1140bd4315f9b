# SPDX-License-Identifier: Apache-2.0
"""Outcomes of answers, one by one and as rates."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from vllm_surgery.evaluation.tasks.list_entries import distinct_entries
from vllm_surgery.intervals import Estimate, wilson
from vllm_surgery.loops import KINDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm_surgery.evaluation.records import Record


@dataclass(frozen=True)
class Rates:
    """Counts and rates of some answers.

    Attributes:
        answers: how many there are.
        terminal: how many end in a loop of each kind; one that is in two kinds at once counts for both.
        looped: share that ends in a loop of any kind, the kinds pooled.
        escaped: how many were in a loop, left it, and don't end in one.
        ever: share that ends in a loop or was in one, the kinds pooled.
        cut: how many the budget ended; the others the model did.
        tokens: of all of them.
        wasted: tokens from the onset of the loop that an answer ends in to its end.
        entries: different entries of the middle answer, right or wrong: one that stops at once has no loop either.
    """

    answers: int
    terminal: dict[str, int]
    looped: Estimate
    escaped: int
    ever: Estimate
    cut: int
    tokens: int
    wasted: int
    entries: float

    @classmethod
    def of(cls, records: Sequence[Record]) -> Rates:
        """The figures of these answers, of which there must be one."""
        kinds = [terminal_kinds(record) for record in records]
        looped, ever = sum(map(bool, kinds)), sum(map(ever_loops, records))
        return cls(
            answers=len(records),
            terminal={kind: sum(kind in found for found in kinds) for kind in KINDS},
            looped=wilson(looped, len(records)),
            escaped=ever - looped,
            ever=wilson(ever, len(records)),
            cut=sum(record.finish == "length" for record in records),
            tokens=sum(len(record.token_ids) for record in records),
            wasted=sum(map(wasted, records)),
            entries=median(distinct_entries(record.text) for record in records),
        )


def terminal_kinds(record: Record) -> list[str]:
    """The kinds of loop that an answer ends in."""
    return sorted({loop.kind for loop in record.loops if loop.outcome == "terminal"})


def loops(record: Record) -> bool:
    """True if an answer ends in a loop of any kind."""
    return bool(terminal_kinds(record))


def ever_loops(record: Record) -> bool:
    """True if an answer was ever in a loop of any kind."""
    return bool(record.loops)


def until_loop(record: Record) -> tuple[int, bool]:
    """The onset of an answer's first loop and True, or its length and False."""
    onset = min((loop.onset for loop in record.loops), default=None)
    return (len(record.token_ids), False) if onset is None else (onset, True)


def wasted(record: Record) -> int:
    """The tokens from the onset of the loop that an answer ends in to its end; 0 where it ends in none."""
    onsets = [loop.onset for loop in record.loops if loop.outcome == "terminal"]
    return len(record.token_ids) - min(onsets) if onsets else 0
