# SPDX-License-Identifier: Apache-2.0
"""Attribution of loops to units: from activations in the engine, and from gradients where they can be had."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from vllm_surgery.atomic_files import atomic_write
from vllm_surgery.errors import UsageError
from vllm_surgery.evaluation.analysis.tail_judge import ends_in_repeats
from vllm_surgery.localization.candidates import Candidate, round_robin
from vllm_surgery.localization.transcripts import Passage
from vllm_surgery.patch.units import MASK, Unit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from vllm_surgery.evaluation.records import Record
    from vllm_surgery.patch.units import Gain, UnitBlock

RANKING_FILE = "ranking.json"
MIN_LOOP_TOKENS = 8
"""Tokens of a loop behind its first copy. With fewer there is little to take a mean of."""


@dataclass(frozen=True)
class Attribution:
    """Candidates worth trying, the best first.

    Attributes:
        singles: one unit each.
        sets: several units each.
        notes: what couldn't be looked at, and why.
        seconds: that it took.
    """

    singles: list[Candidate]
    sets: list[Candidate] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = field(default=0.0, compare=False)

    def to_data(self) -> dict[str, Any]:
        """Plain data."""
        singles, sets = ([one.to_data() for one in part] for part in (self.singles, self.sets))
        return {"singles": singles, "sets": sets, "notes": self.notes, "seconds": self.seconds}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Attribution:
        """The attribution whose `to_data` this is."""
        singles, sets = ([Candidate.from_data(one) for one in data[part]] for part in ("singles", "sets"))
        return cls(singles, sets, data["notes"], data.get("seconds", 0.0))


def passages(records: Sequence[Record], tokens_before: Callable[[str], list[int]]) -> list[Passage]:
    """The transcripts of some answers: those that end in a loop, and those that never were in one.

    Loops are the detectors', who say where one begins. What the tail judge alone calls a loop is neither.

    Args:
        records: answers of the unpatched model.
        tokens_before: the tokens of a prompt with the chat template around it.
    """
    found = []
    for record in records:
        terminal = [loop for loop in record.loops if loop.outcome == "terminal"]
        if not record.token_ids or (not terminal and (record.loops or ends_in_repeats(record))):
            continue
        prompt = tokens_before(record.prompt)
        exact = [loop for loop in terminal if loop.kind == "verbatim"] or terminal  # An entry's period is an average.
        repeats = min((loop.onset + loop.period for loop in exact), default=None)
        if repeats is not None and len(record.token_ids) - repeats < MIN_LOOP_TOKENS:
            continue
        start = len(prompt)
        found.append(Passage(prompt + record.token_ids, start, None if repeats is None else start + repeats))
    return found


def by_activity(scores: Sequence[tuple[Unit, float]], *, mask: bool) -> list[Candidate]:
    """Candidates from units ranked by how much more, or less, they say inside a loop than before it.

    What says more is silenced and inverted; what says less is made stronger.
    """
    found: list[Candidate] = []
    for unit, score in scores:
        gains: list[Gain] = [0.0, -1.0] if score > 0 else [3.0]
        if unit.kind == "experts":
            gains = ([MASK, 0.0] if mask else [0.0]) if score > 0 else [2.0]
        found += [Candidate.of({unit: gain}, "activity") for gain in gains]
    return found


def within(candidates: Sequence[Candidate], blocks: Sequence[UnitBlock]) -> list[Candidate]:
    """Those whose units all lie in these blocks."""
    known = set(blocks)
    return [one for one in candidates if all((target.kind, target.layer) in known for target, _ in one.gains)]


def interleave(rankings: Sequence[Sequence[Candidate]], blocks: Sequence[UnitBlock], count: int) -> list[Candidate]:
    """One list of singles: the rankings take turns, each once within the layers that matter and once everywhere."""
    lists = [part for ranking in rankings for part in (within(ranking, blocks), ranking)]
    return round_robin(*lists, count=count)


def load_or_compute(
    folder: Path,
    make: Callable[[Sequence[Record], Sequence[UnitBlock], float], Attribution],
    records: Sequence[Record],
    matter: Sequence[UnitBlock],
    seconds: float = math.inf,
) -> Attribution:
    """The attribution that `make` gives in `seconds`, or gave before the search was stopped.

    Raises:
        UsageError: what is there is no ranking.
    """
    file = folder / RANKING_FILE
    if file.exists():
        try:
            return Attribution.from_data(json.loads(file.read_text()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UsageError(f"{file}: not a ranking of a search") from None
    started = time.monotonic()
    found = make(records, matter, seconds)
    found = replace(found, seconds=time.monotonic() - started)
    atomic_write(file, json.dumps(found.to_data(), indent=1) + "\n")  # A kill leaves no half of a ranking.
    return found
