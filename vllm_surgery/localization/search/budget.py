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
        seconds: that all measurements together may take.
        answers: that may be asked for.
    """

    seconds: float = math.inf
    answers: float = math.inf
    spent_seconds: float = field(default=0.0, init=False)
    spent_answers: int = field(default=0, init=False)

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

    def spend(self, seconds: float, answers: int) -> None:
        """Counts a measurement."""
        self.spent_seconds += seconds
        self.spent_answers += answers

    @property
    def used(self) -> float:
        """The share that was spent; 0 without a limit."""
        return max(self.spent_seconds / self.seconds, self.spent_answers / self.answers)
