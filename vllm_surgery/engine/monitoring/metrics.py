# SPDX-License-Identifier: Apache-2.0
"""Metrics of answers and their loops."""

from __future__ import annotations

from collections import Counter as Tally
from typing import TYPE_CHECKING, Any

from prometheus_client import Counter, Gauge, Histogram

from vllm_surgery.engine.metrics import Spec
from vllm_surgery.loops import KINDS

if TYPE_CHECKING:
    from vllm_surgery.engine.metrics import Metrics
    from vllm_surgery.engine.monitoring.request import WatchedAnswer
    from vllm_surgery.loops import Kind

_ONSETS = tuple(float(1 << power) for power in range(4, 17))
"""16 to 65,536 tokens: every doubling, since a loop that begins at 100 and one at 10,000 are different illnesses."""

_PERIODS = tuple(float(1 << power) for power in range(11))
"""1 to 1,024 tokens, the longest period that is looked for."""

REQUESTS = Spec(Counter, "vllm_surgery_requests_total", "Answers that ended, aborted ones too.", ("finish_reason",))
LOOPS = Spec(
    Counter,
    "vllm_surgery_loops_total",
    "Answers that looped, once per kind; by the patch at the loop's onset.",
    ("kind", "outcome"),
)
OUTPUT_TOKENS = Spec(Counter, "vllm_surgery_output_tokens_total", "Tokens generated.")
LOOPED_TOKENS = Spec(
    Counter, "vllm_surgery_looped_tokens_total", "Tokens generated in loops, counted when the answer ends.", ("kind",)
)
ONSET = Spec(
    Histogram,
    "vllm_surgery_loop_onset_tokens",
    "Output tokens before a loop's first.",
    ("kind",),
    {"buckets": _ONSETS},
)
PERIOD = Spec(
    Histogram,
    "vllm_surgery_loop_period_tokens",
    "Tokens in one copy of what repeats.",
    ("kind",),
    {"buckets": _PERIODS},
)
LOOPING = Spec(
    Gauge,
    "vllm_surgery_looping_requests",
    "Requests that are in a loop now.",
    ("kind",),
    {"multiprocess_mode": "livesum"},
)
SECONDS = Spec(Counter, "vllm_surgery_detector_seconds_total", "Time that watching took in the API process.")
ERRORS = Spec(
    Counter, "vllm_surgery_detector_errors_total", "Answers that were watched no further because a detector failed."
)

WATCHING = Spec(
    Gauge,
    "vllm_surgery_watching",
    "1 while detectors run; 0 once watching has failed, so that the counters of loops stand still.",
    options={"multiprocess_mode": "livemin"},
    by_patch=False,
)

_LENGTHS = tuple(float(1 << power) for power in range(1, 17))
"""Of answers, 2 to 65,536 tokens. The mean is exact; only the spread is taken from these."""

ANSWERS = Spec(
    Counter,
    "vllm_surgery_answers_total",
    "Answers of which one patch made every token, by how they ended and whether they looped; to compare patches.",
    ("finish_reason", "loop"),
)
SOUND_TOKENS = Spec(
    Histogram,
    "vllm_surgery_sound_answer_tokens",
    "Tokens of those that did not loop and were not broken off.",
    options={"buckets": _LENGTHS},
)

SPECS = (
    REQUESTS,
    LOOPS,
    OUTPUT_TOKENS,
    LOOPED_TOKENS,
    ONSET,
    PERIOD,
    LOOPING,
    SECONDS,
    ERRORS,
    WATCHING,
    ANSWERS,
    SOUND_TOKENS,
)
"""All of them, for dashboards and rules."""

TAKEN_BACK = "taken_back"
OUTCOMES = ("terminal", "escaped", TAKEN_BACK)
"""The answer ended in it; the model left it; it was taken out of the answer before its client saw it."""

NO_LOOP = "none"
LOOPED = (NO_LOOP, "terminal", TAKEN_BACK, "escaped")
"""What is said of an answer as a whole: nothing, or of its loops the outcome that comes first here."""

_USUAL_REASONS = ("stop", "length", "abort")


class LoopMetrics:
    """Counters of one model.

    Args:
        metrics: where.
        model_name: as vLLM's own metrics name it.
    """

    def __init__(self, metrics: Metrics, model_name: str) -> None:
        self._metrics, self._model_name = metrics, model_name
        self._looping: Tally[tuple[Kind, str]] = Tally()

    def open(self, patch: str) -> None:
        """Makes the counters of `patch`: a rate over a counter that begins at one misses that one."""
        self._metrics.total(WATCHING, self._model_name).set(1)
        for spec in (OUTPUT_TOKENS, SECONDS, ERRORS):
            self._of(spec, patch)
        for reason in _USUAL_REASONS:
            self._of(REQUESTS, patch, reason)
        for kind in KINDS:
            self._of(LOOPED_TOKENS, patch, kind)
            self._of(LOOPING, patch, kind).set(self._looping[kind, self._metrics.label(patch)])
            for outcome in OUTCOMES:
                self._of(LOOPS, patch, kind, outcome)

    def spent(self, patch: str, tokens: int, seconds: float) -> None:
        """Counts tokens that came, and what it took to watch them."""
        if tokens:
            self._of(OUTPUT_TOKENS, patch).inc(tokens)
        self._of(SECONDS, patch).inc(seconds)

    def failed(self, patch: str) -> None:
        """Counts an answer whose detector failed."""
        self._of(ERRORS, patch).inc()

    def stopped(self) -> None:
        """Says that watching is off: nothing is known to loop any more, which isn't the same as that nothing loops."""
        self._metrics.total(WATCHING, self._model_name).set(0)
        for kind, patch in self._looping:
            self._of(LOOPING, patch, kind).set(0)
        self._looping.clear()

    def entered(self, kind: Kind, patch: str) -> None:
        """Counts a request that is in a loop from now on."""
        self._change_looping(kind, patch, 1)

    def left(self, kind: Kind, patch: str) -> None:
        """Counts a request, `entered` with these arguments, that is not in that loop any more."""
        self._change_looping(kind, patch, -1)

    def ended(self, answer: WatchedAnswer) -> None:
        """Counts an answer that is complete or was broken off."""
        self._of(REQUESTS, answer.patch, answer.finish_reason).inc()
        if answer.only_patch is not None:
            self._compare(answer, answer.only_patch)
        for loop, patch in answer.loops:
            self._of(LOOPS, patch, loop.kind, loop.outcome).inc()
            self._of(ONSET, patch, loop.kind).observe(loop.onset)
            self._of(PERIOD, patch, loop.kind).observe(loop.period)
        for loop, patch in answer.taken_back:
            self._of(LOOPS, patch, loop.kind, TAKEN_BACK).inc()
        for (kind, patch), tokens in answer.looped_tokens.items():
            self._of(LOOPED_TOKENS, patch, kind).inc(tokens)

    def _compare(self, answer: WatchedAnswer, patch: str) -> None:
        looped = _looped(answer)
        self._of(ANSWERS, patch, answer.finish_reason, looped).inc()
        if looped == NO_LOOP and answer.finish_reason != "abort":
            self._of(SOUND_TOKENS, patch).observe(answer.tokens)

    def _change_looping(self, kind: Kind, patch: str, change: int) -> None:
        place = (kind, self._metrics.label(patch))
        self._looping[place] += change
        # Set, not stepped: the series of a patch that went unused may have been removed in between.
        self._of(LOOPING, patch, kind).set(self._looping[place])
        if not self._looping[place]:
            del self._looping[place]

    def _of(self, spec: Spec, patch: str, *labels: str) -> Any:
        return self._metrics.series(spec, self._model_name, patch, *labels)


def _looped(answer: WatchedAnswer) -> str:
    """What is said of an answer as a whole; see `LOOPED`."""
    outcomes = {loop.outcome for loop, _ in answer.loops} | ({TAKEN_BACK} if answer.taken_back else set())
    return next((outcome for outcome in LOOPED if outcome in outcomes), NO_LOOP)
