# SPDX-License-Identifier: Apache-2.0
"""The parts of a search: which share of the budget each may use, decided beforehand, and how far a search has come."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm_surgery.localization.search.budget import Budget

BASELINE, UNITS, REST = "baseline", "units", "rest"
BASELINE_SHARE = 0.25
"""Of the budget. Once it is used the baseline takes no further seed of sampled answers: each costs again with every
candidate that is measured in full. The greedy answers it takes in any case, since without them there is no search."""

SHARES: Mapping[str, float] = {
    "layers": 0.1, UNITS: 0.25, "singles": 0.45, "gains": 0.52, "sets": 0.7, "doses": 0.83, "pairs": 0.88,
    "grown": 0.97, "shrunk": 0.99, REST: 1,
}  # fmt: skip
"""The share of what the baseline left by which each part is done; what one doesn't use the next ones may. Ablating
layers only guides, and gradients find units without it; sets have done most on the demo model. Rankings ask nothing, so
they count where the budget is a time."""

BASELINE_OF_WHOLE = 0.05
"""What the baseline is taken for on the bar of a search without a limit."""


class Stages:
    """The parts of one search.

    Args:
        budget: of the search.

    Attributes:
        budget: of the search.
        part: that is under way.
        spent: of each part until now, the seconds and the answers.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget, self._start = budget, 0.0
        self.part, self._steps, self._done = BASELINE, 1, 0.0
        self.spent: dict[str, tuple[float, int]] = {}
        self._before = (0.0, 0)

    def enter(self, part: str, steps: int) -> None:
        """Begins a part of so many steps."""
        self.close()
        if self.part == BASELINE:
            self._start = min(1.0, self.budget.used)
        self.part, self._steps, self._done = part, max(1, steps), 0.0

    def close(self) -> None:
        """Counts what was spent since the last part began."""
        now = (self.budget.spent_seconds, self.budget.spent_answers)
        seconds, answers = self.spent.get(self.part, (0.0, 0))
        self.spent[self.part] = (seconds + now[0] - self._before[0], answers + now[1] - self._before[1])
        self._before = now

    def step(self, steps: float = 1) -> None:
        """Counts steps of the part."""
        self._done += steps

    def bound(self, part: str) -> float:
        """The share of the whole budget by which a part is done."""
        return self._start + (1 - self._start) * SHARES[part]

    def is_over(self, part: str) -> bool:
        """Whether a part has used up what it may."""
        return self.budget.used >= self.bound(part)

    def left(self, part: str) -> float:
        """The share of the whole budget that a part may still use."""
        return max(0.0, self.bound(part) - self.budget.used)

    def seconds_left(self, part: str) -> float:
        """What a part may still take that asks for no answers; without end where the budget isn't a time."""
        if not math.isfinite(self.budget.seconds):
            return math.inf
        return max(0.0, self.bound(part) * self.budget.seconds - self.budget.spent_seconds)

    @property
    def position(self) -> float:
        """How far the search has come, from 0 to 1: by what was spent, or without a limit by its parts."""
        if self.budget.limited:
            return min(1.0, self.budget.used_so_far)
        done = min(1.0, self._done / self._steps)
        if self.part == BASELINE:
            return BASELINE_OF_WHOLE * done
        before = [share for share in SHARES.values() if share < SHARES[self.part]]
        first = max(before, default=0.0)
        return BASELINE_OF_WHOLE + (1 - BASELINE_OF_WHOLE) * (first + (SHARES[self.part] - first) * done)
