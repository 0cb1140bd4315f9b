# SPDX-License-Identifier: Apache-2.0
"""A second judge of how answers end, far simpler than the detectors; none of its numbers was chosen by any text.

A search keeps whatever edit lowers what the detectors count, so it may find edits that move loops to where they are
blind. This judge is blind elsewhere. Answers about which the two disagree are for people to read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_surgery.errors import one_line
from vllm_surgery.evaluation.analysis.outcomes import terminal_kinds
from vllm_surgery.evaluation.tasks.list_entries import entries
from vllm_surgery.intervals import Estimate, wilson

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm_surgery.evaluation.records import Record

TAIL = 240
"""Characters at an answer's end that are looked at: three lines."""

COPIES = 4
"""How often what repeats stands in the tail, and each of the last entries on average."""

DOZEN = 12
"""Last entries of a list that are looked at."""

_SHOWN = 100
"""Characters shown of an answer's end."""


@dataclass(frozen=True)
class Disagreement:
    """An answer of which the two judges say different things.

    Attributes:
        kinds: of the loops that the detectors say it ends in; none where only the tail judge says that it loops.
        end: its last characters.
    """

    cell: str
    set: str
    probe: str
    seed: int
    kinds: list[str]
    end: str


@dataclass(frozen=True)
class Agreement:
    """Two judges on the same answers.

    Attributes:
        looped: share that ends in a loop, says the tail judge.
        both: answers of which both say so.
        disagreements: all others of which one does.
    """

    answers: int
    looped: Estimate
    both: int
    disagreements: list[Disagreement]

    @classmethod
    def of(cls, records: Sequence[Record]) -> Agreement:
        """The judges on these answers, of which there must be one."""
        told = [(record, terminal_kinds(record), ends_in_repeats(record)) for record in records]
        return cls(
            answers=len(records),
            looped=wilson(sum(repeats for *_, repeats in told), len(records)),
            both=sum(bool(kinds) and repeats for _, kinds, repeats in told),
            disagreements=[_of(record, kinds) for record, kinds, repeats in told if bool(kinds) != repeats],
        )


def ends_in_repeats(record: Record) -> bool:
    """True if an answer's last characters are periodic, or if its last dozen entries are few different ones."""
    return is_periodic(record.text) or has_few_entries(record.text)


def is_periodic(text: str) -> bool:
    """True if the last `TAIL` characters are copies of something, `COPIES` at least."""
    tail = text.rstrip()[-TAIL:]
    return len(tail) == TAIL and any(tail[period:] == tail[:-period] for period in range(1, TAIL // COPIES + 1))


def has_few_entries(text: str) -> bool:
    """True if each of the last `DOZEN` entries of a list stands there `COPIES` times, on average.

    The very last one doesn't count, since the budget may have cut it.
    """
    latest = entries(text)[:-1][-DOZEN:]
    return len(latest) == DOZEN and len(set(latest)) <= DOZEN // COPIES


def _of(record: Record, kinds: list[str]) -> Disagreement:
    end = one_line(record.text.rstrip()[-_SHOWN:], _SHOWN)
    return Disagreement(record.key.cell, record.key.set, record.key.probe, record.key.seed, kinds, end)
