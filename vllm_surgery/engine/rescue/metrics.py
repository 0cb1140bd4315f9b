# SPDX-License-Identifier: Apache-2.0
"""Metrics of rescues."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client import Counter

from vllm_surgery.engine.metrics import Spec
from vllm_surgery.engine.rescue.actions import STOP

if TYPE_CHECKING:
    from vllm_surgery.engine.metrics import Metrics
    from vllm_surgery.engine.rescue.actions import Policy
    from vllm_surgery.loops import Kind

_LABELS = ("kind", "action", "outcome")

RESCUES = Spec(
    Counter,
    "vllm_surgery_rescues_total",
    "What was done to answers that looped, counted when they end; by the patch that they looped under.",
    _LABELS,
)
RESCUED_TOKENS = Spec(
    Counter,
    "vllm_surgery_rescued_tokens_total",
    "Tokens that rescues took back from answers; of those that were stopped, tokens of their budget not spent.",
    _LABELS,
)

SPECS = (RESCUES, RESCUED_TOKENS)
"""All of them, for dashboards and rules."""

ENDED, LOOPED_AGAIN, CUT = "ended", "looped_again", "cut"
OUTCOMES = (ENDED, LOOPED_AGAIN, CUT)
"""The answer came to an end of its own, or was stopped; it looped once more; its budget or its client ended it."""


class RescueMetrics:
    """Counters of one model.

    Args:
        metrics: where.
        model_name: as vLLM's own metrics name it.
    """

    def __init__(self, metrics: Metrics, model_name: str) -> None:
        self._metrics, self._model_name = metrics, model_name

    def expect(self, patch: str, policy: Policy) -> None:
        """Makes the series of what a policy may do to answers under a patch, so that their first count is a rise."""
        for kind, actions in policy.actions.items():
            for action in {STOP, *(action.name for action in actions)}:
                for outcome in (ENDED,) if action == STOP else OUTCOMES:
                    self._series(patch, kind, action, outcome)

    def count(self, patch: str, kind: Kind, action: str, outcome: str, tokens: int) -> None:
        """Counts a rescue whose outcome is known.

        Args:
            patch: the id of the patch that the answer looped under.
            kind: of the loop.
            action: the name of what was done.
            outcome: one of `OUTCOMES`.
            tokens: taken back, or not spent.
        """
        rescues, rescued = self._series(patch, kind, action, outcome)
        rescues.inc()
        rescued.inc(tokens)

    def _series(self, *labels: str) -> tuple[Any, Any]:
        return tuple(self._metrics.series(spec, self._model_name, *labels) for spec in SPECS)
