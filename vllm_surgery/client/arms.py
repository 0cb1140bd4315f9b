# SPDX-License-Identifier: Apache-2.0
"""What servers' ``/metrics`` say of the answers of one patch, to be set beside those of another.

Only answers of which one patch made every token are counted here, so that what ran while patches were swapped belongs
to neither. Needs prometheus_client, which vLLM brings.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vllm_surgery.client.traffic import Sums, samples

if TYPE_CHECKING:
    from collections.abc import Mapping

ANSWERS, LENGTHS = "answers_total", "sound_answer_tokens"

_IN_LOOPS = frozenset({"terminal", "taken_back"})
"""An answer that ended in its loop, or would have: it was taken back out of it."""


@dataclass(frozen=True)
class Scrape:
    """What one server has counted since its start.

    Attributes:
        arms: by patch id.
        watched: whether it watches for loops.
        errors: answers that were watched no further because a detector failed.
    """

    arms: Mapping[str, Arm]
    watched: bool
    errors: int

    @classmethod
    def of(cls, text: str) -> Scrape:
        """The figures in the text of ``/metrics``.

        Raises:
            UsageError: it isn't Prometheus's text format.
        """
        sums = Sums(samples(text))
        patches = [patch for (patch,) in sums.values_of("requests_total", "patch")]
        return cls(
            {patch: Arm.of(sums, patch) for patch in patches},
            watched=sums.of("watching") > 0,
            errors=sums.whole("detector_errors_total"),
        )

    def arm(self, patch: str) -> Arm:
        """The answers of a patch; none where it has made none."""
        return self.arms.get(patch, Arm())


@dataclass(frozen=True)
class Arm:
    """Answers of one patch.

    Attributes:
        answers: all of them, those that were broken off too.
        looped: those that ended in a loop, or were taken back out of one.
        stopped: those that ended by themselves.
        aborted: those that were broken off, mostly by their clients.
        sound_tokens: of those that neither looped nor were broken off.
        lengths: the same answers counted by their length: the bound that each is at or below.
    """

    answers: int = 0
    looped: int = 0
    stopped: int = 0
    aborted: int = 0
    sound_tokens: int = 0
    lengths: Mapping[float, int] = field(default_factory=dict)

    @classmethod
    def of(cls, sums: Sums, patch: str) -> Arm:
        """The answers of a patch in one scrape."""

        def count(**labels: str) -> int:
            return sums.whole(ANSWERS, patch=patch, **labels)

        return cls(
            answers=count(),
            looped=sum(count(loop=loop) for loop in _IN_LOOPS),
            stopped=count(finish_reason="stop"),
            aborted=count(finish_reason="abort"),
            sound_tokens=sums.whole(f"{LENGTHS}_sum", patch=patch),
            lengths=_lengths(sums, patch),
        )

    def __add__(self, other: Arm) -> Arm:
        """The answers of two servers."""
        return self._with(other, 1)

    def __sub__(self, earlier: Arm) -> Arm:
        """What came since an earlier look. A server that was restarted since counts from nothing."""
        return self if self.answers < earlier.answers else self._with(earlier, -1)

    def _with(self, other: Arm, sign: int) -> Arm:
        lengths = Counter(self.lengths)
        for bound, count in other.lengths.items():
            lengths[bound] += sign * count
        return Arm(
            self.answers + sign * other.answers,
            self.looped + sign * other.looped,
            self.stopped + sign * other.stopped,
            self.aborted + sign * other.aborted,
            self.sound_tokens + sign * other.sound_tokens,
            dict(lengths),
        )

    @property
    def sound(self) -> int:
        """Answers that neither looped nor were broken off."""
        return sum(self.lengths.values())

    @property
    def mean_length(self) -> float:
        """Of the sound answers, in tokens; NaN where there are none."""
        return self.sound_tokens / self.sound if self.sound else math.nan

    @property
    def length_error(self) -> float:
        """Standard error of `mean_length` as a share of it; NaN of fewer than two.

        The spread is that of the counts by length, each answer taken as far from the mean as its bounds allow: no less
        than it is.
        """
        if self.sound < 2:  # noqa: PLR2004 - one answer has no spread
            return math.nan
        mean, squares, below = self.mean_length, 0.0, 0.0
        for bound in sorted(self.lengths):
            above = bound if math.isfinite(bound) else 2 * below
            squares += self.lengths[bound] * max(abs(below - mean), abs(above - mean)) ** 2
            below = bound
        return math.sqrt(squares / (self.sound - 1) / self.sound) / mean


def _lengths(sums: Sums, patch: str) -> dict[float, int]:
    """Counts for each bucket alone; Prometheus has them of all up to it."""
    bounds = {math.inf if bound == "+Inf" else float(bound) for (bound,) in sums.values_of(f"{LENGTHS}_bucket", "le")}
    counted, below = {}, 0
    for bound in sorted(bounds):
        reached = sums.whole(f"{LENGTHS}_bucket", patch=patch, le=_label(bound))
        counted[bound], below = reached - below, reached
    return counted


def _label(bound: float) -> str:
    """A bound as prometheus_client writes it."""
    return "+Inf" if math.isinf(bound) else str(bound)
