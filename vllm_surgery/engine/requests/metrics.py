# SPDX-License-Identifier: Apache-2.0
"""The metric of slots: how many hold a patch that requests can choose, and how many a fill may take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import Gauge

from vllm_surgery.engine.metrics import Spec

if TYPE_CHECKING:
    from vllm_surgery.engine.metrics import Metrics
    from vllm_surgery.engine.requests.leader import SlotState

STATES = ("used", "free")

SLOTS = Spec(
    Gauge,
    "vllm_surgery_slots",
    "Slots whose patch requests can choose (used), and all others (free).",
    ("state",),
    {"multiprocess_mode": "mostrecent"},
    by_patch=False,
)

SPECS = (SLOTS,)
"""All of them, for dashboards and rules."""


class SlotGauge:
    """Gauge of one server's slots.

    A slot that is left by its last choice counts as free at once, although requests may still end under it: when they
    do, nobody in this process is told.

    Args:
        metrics: where it is shown.
        model_name: as vLLM's own metrics name it.
    """

    def __init__(self, metrics: Metrics, model_name: str) -> None:
        self._metrics, self._model_name = metrics, model_name

    def show(self, state: SlotState) -> None:
        """Shows the slots as they are now."""
        used = len({item.digest for item in state.offer.patches.values()})
        for name, number in zip(STATES, (used, state.count - used), strict=True):
            self._metrics.total(SLOTS, self._model_name, name).set(number)
