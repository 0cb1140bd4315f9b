# SPDX-License-Identifier: Apache-2.0
"""The cost of every measurement, written down: the budget is charged once for each, now or as it was back then."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import asdict, dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

from vllm_surgery.evaluation.records import append_lines, read_lines
from vllm_surgery.localization.search.budget import Asked

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vllm_surgery.evaluation.records import Way
    from vllm_surgery.localization.search.budget import Budget

    Look = tuple[Any, ...]
    """How closely a candidate was measured: a `Fidelity`."""

SPENT_FILE = "spent.jsonl"


class Manner(NamedTuple):
    """How a measurement was made.

    Attributes:
        way: how the candidate came to its answers; None for the unpatched model.
        why: no slot could hold it, where it was swapped in for that.
        group: all candidates that were to be measured side by side, those among them that were known or refused.
    """

    way: Way | None = None
    why: str | None = None
    group: Sequence[str] = ()


@dataclass(frozen=True)
class Spent:
    """Cost of one measurement.

    Attributes:
        answers: that were made for it.
        tasks: how many of them are to tasks.
        batch: number of the batch in which it was made, beside others.
        way: see `Manner`.
        why: see `Manner`.
        group: see `Manner`; empty where a version before this one didn't write it down.
    """

    seconds: float
    answers: int
    batch: int = 0
    way: Way | None = None
    why: str | None = None
    tasks: int = 0
    group: Sequence[str] = ()

    @property
    def asked(self) -> Asked:
        """The answers, by kind."""
        return Asked(self.answers - self.tasks, self.tasks)


class Spending:
    """What was spent.

    Args:
        folder: of the search.
        budget: that is charged.
        known: by candidate, the answers that there are already. Some may be of measurements in the middle of which a
            search was killed.
    """

    def __init__(self, folder: Path, budget: Budget, known: Mapping[str, Asked]) -> None:
        self._file, self._budget = folder / SPENT_FILE, budget
        self._spent = {(line["candidate"], *line["look"]): _spent(line) for line in read_lines(self._file)}
        groups = ((look, tuple(spent.group)) for (_, *look), spent in self._spent.items() if spent.group)
        self._groups = deque(dict.fromkeys((tuple(look), group) for look, group in groups))
        self._batches = max((spent.batch for spent in self._spent.values()), default=0)
        self._paid: set[Look] = set()
        self._owed = dict(known)
        for (name, *_), spent in self._spent.items():
            left = self.owed(name).minus(spent.asked)
            # A version before this one didn't write down which answers were to tasks.
            self._owed[name] = Asked(max(0, left.lists), max(0, left.tasks))

    def knows(self, name: str, look: Look) -> bool:
        """Whether a measurement was made."""
        return (name, *look) in self._spent

    def pay(self, name: str, look: Look) -> None:
        """Charges the budget for a measurement, once."""
        key = (name, *look)
        if key not in self._paid:
            self._paid.add(key)
            self._budget.spend(self._spent[key].seconds, self._spent[key].asked)

    def unpaid(self, name: str, look: Look) -> Asked:
        """The answers that the budget will be charged with for a measurement that was made."""
        key = (name, *look)
        return Asked() if key in self._paid else self._spent[key].asked

    def owed(self, name: str) -> Asked:
        """Answers that were made before a kill, and that the next measurement of a candidate will be charged with."""
        return self._owed.get(name, Asked())

    def side_by_side(self, names: Sequence[str], look: Look) -> int:
        """How many of the next candidates were measured side by side before the search was stopped; 0 for none."""
        if self._groups:
            known, group = self._groups[0]
            if known == look and group == tuple(names[: len(group)]):
                self._groups.popleft()
                return len(group)
        batch = self._batch_of(names[0], look)
        return 0 if batch is None else len([*takewhile(lambda name: self._batch_of(name, look) == batch, names)])

    def is_to_be_paid(self, name: str, look: Look) -> bool:
        """Whether a measurement was made before the search was stopped, and hasn't been come to since."""
        return self._batch_of(name, look) is not None

    def _batch_of(self, name: str, look: Look) -> int | None:
        key = (name, *look)
        return self._spent[key].batch if key in self._spent and key not in self._paid else None

    def write(self, asked: Mapping[str, Asked], look: Look, seconds: float, manner: Manner) -> None:
        """Notes what each measurement of a batch cost: its own answers, and as much of the time.

        Args:
            asked: by candidate, the answers that it gave.
            look: how closely they were measured.
            seconds: of the whole batch.
            manner: in which it was made.
        """
        total, lines = sum(one.answers for one in asked.values()), []
        self._batches += 1
        for name, one in asked.items():
            share = one.answers / total if total else 1 / len(asked)
            took, made = self._with_owed(name, share * seconds, one)
            spent = self._spent[name, *look] = Spent(
                took, made.answers, self._batches, manner.way, manner.why, made.tasks, manner.group
            )
            lines.append({"candidate": name, "look": look, **asdict(spent)})
        append_lines(self._file, lines)

    def _with_owed(self, name: str, seconds: float, asked: Asked) -> tuple[float, Asked]:
        """Cost of a measurement, with what was done of it before a kill; how long that took is no longer known."""
        owed = self._owed.pop(name, Asked())
        took = seconds + sum(spent.seconds for spent in self._spent.values())
        made = asked.answers + sum(spent.answers for spent in self._spent.values())
        return seconds + (owed.answers * took / made if made else 0.0), asked.plus(owed)

    @property
    def ways(self) -> dict[Way, int]:
        """How many measurements were made in each way."""
        found: Counter[Way] = Counter(spent.way for spent in self._spent.values() if spent.way is not None)
        return dict(sorted(found.items()))

    @property
    def why_swapped(self) -> list[str]:
        """Reasons for which no slot could hold a candidate."""
        return list(dict.fromkeys(spent.why for spent in self._spent.values() if spent.why is not None))


def _spent(line: Mapping[str, Any]) -> Spent:
    return Spent(**{name: line[name] for name in Spent.__dataclass_fields__ if name in line})
