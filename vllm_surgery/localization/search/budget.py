# SPDX-License-Identifier: Apache-2.0
"""Budget of a search, in minutes or answers.

What was spent is counted from what was written down, so a search that was killed and goes on decides as if it had never
been.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import NamedTuple

from vllm_surgery.errors import UsageError

_SPELLING = re.compile(r"(?P<number>\d+(?:\.\d+)?)(?P<unit>|m|h|g)")
_SECONDS = {"": 60.0, "m": 60.0, "h": 3600.0}


class Asked(NamedTuple):
    """How many answers were asked for, or will be.

    Attributes:
        lists: to probes for loops.
        tasks: to short lists and skills.
    """

    lists: int = 0
    tasks: int = 0

    @property
    def answers(self) -> int:
        """All of them."""
        return self.lists + self.tasks

    def plus(self, more: Asked) -> Asked:
        """Both together."""
        return Asked(self.lists + more.lists, self.tasks + more.tasks)

    def minus(self, less: Asked) -> Asked:
        """Without so many of each."""
        return Asked(self.lists - less.lists, self.tasks - less.tasks)


@dataclass
class Budget:
    """A limit, and how much of it was spent.

    Attributes:
        seconds: that a search may take: its measurements and its rankings.
        answers: to probes for loops that may be asked for.
        task_weight: how many of them an answer to a task counts for. Those to tasks are much shorter.
    """

    seconds: float = math.inf
    answers: float = math.inf
    task_weight: float = field(default=1.0, init=False)
    spent_seconds: float = field(default=0.0, init=False)
    spent: Asked = field(default=Asked(), init=False)
    _asking_seconds: float = field(default=0.0, init=False)
    _under_way: tuple[float, Asked] = field(default=(0.0, Asked()), init=False, compare=False)

    @classmethod
    def parse(cls, text: str) -> Budget:
        """``90``, ``90m`` and ``1.5h`` are time, ``4000g`` is generations.

        Raises:
            UsageError: it is none of them.
        """
        found = _SPELLING.fullmatch(text.strip())
        if found is None or float(found["number"]) == 0:
            raise UsageError(f"--budget {text}: write minutes (90), hours (1.5h) or generations (4000g)")
        number = float(found["number"])
        return cls(answers=number) if found["unit"] == "g" else cls(seconds=number * _SECONDS[found["unit"]])

    @property
    def limited(self) -> bool:
        """Whether there is a limit at all."""
        return math.isfinite(self.seconds) or math.isfinite(self.answers)

    @property
    def spent_answers(self) -> int:
        """Answers that were asked for."""
        return self.spent.answers

    def spend(self, seconds: float, asked: Asked) -> None:
        """Counts what was done."""
        self.spent_seconds += seconds
        self.spent = self.spent.plus(asked)
        self._asking_seconds += seconds if asked.answers else 0.0
        self._under_way = (0.0, Asked())

    def note(self, seconds: float, asked: Asked) -> None:
        """What is being done now has taken so much. It is counted by `spend` when it is done."""
        self._under_way = (seconds, asked)

    @property
    def used(self) -> float:
        """The share that was spent; 0 without a limit."""
        return self._share(self.spent_seconds, self.spent)

    @property
    def used_so_far(self) -> float:
        """The same with what is under way."""
        seconds, asked = self._under_way
        return self._share(self.spent_seconds + seconds, self.spent.plus(asked))

    def after(self, asked: Asked) -> float:
        """The share that will be spent after so many more answers, at the pace of those until now."""
        spent = self._weight(self.spent)
        pace = self._asking_seconds / spent if spent else 0.0
        return self._share(self.spent_seconds + self._weight(asked) * pace, self.spent.plus(asked))

    def _weight(self, asked: Asked) -> float:
        return asked.lists + self.task_weight * asked.tasks

    def _share(self, seconds: float, asked: Asked) -> float:
        return max(seconds / self.seconds, self._weight(asked) / self.answers)
