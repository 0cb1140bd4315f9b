# SPDX-License-Identifier: Apache-2.0
"""Budget of a search, in minutes or answers.

What was spent is counted from what was written down, so a search that was killed and goes on decides as if it had never
been.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from vllm_surgery.errors import UsageError

_SPELLING = re.compile(r"(?P<number>\d+(?:\.\d+)?)(?P<unit>|m|h|g)")
_SECONDS = {"": 60.0, "m": 60.0, "h": 3600.0}


@dataclass
class Budget:
    """A limit, and how much of it was spent.

    Attributes:
        seconds: that a search may take: its measurements and its rankings.
        answers: that may be asked for.
    """

    seconds: float = math.inf
    answers: float = math.inf
    spent_seconds: float = field(default=0.0, init=False)
    spent_answers: int = field(default=0, init=False)
    _asking_seconds: float = field(default=0.0, init=False)
    _under_way: tuple[float, int] = field(default=(0.0, 0), init=False, compare=False)

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

    def spend(self, seconds: float, answers: int) -> None:
        """Counts what was done."""
        self.spent_seconds += seconds
        self.spent_answers += answers
        self._asking_seconds += seconds if answers else 0.0
        self._under_way = (0.0, 0)

    def note(self, seconds: float, answers: int) -> None:
        """What is being done now has taken so much. It is counted by `spend` when it is done."""
        self._under_way = (seconds, answers)

    @property
    def used(self) -> float:
        """The share that was spent; 0 without a limit."""
        return self._share(self.spent_seconds, self.spent_answers)

    @property
    def used_so_far(self) -> float:
        """The same with what is under way."""
        seconds, answers = self._under_way
        return self._share(self.spent_seconds + seconds, self.spent_answers + answers)

    def after(self, answers: int) -> float:
        """The share that will be spent after so many more answers, at the pace of those until now."""
        pace = self._asking_seconds / self.spent_answers if self.spent_answers else 0.0
        return self._share(self.spent_seconds + answers * pace, self.spent_answers + answers)

    def _share(self, seconds: float, answers: int) -> float:
        return max(seconds / self.seconds, answers / self.answers)
