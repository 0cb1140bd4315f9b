# SPDX-License-Identifier: Apache-2.0
"""Catalog of the package's metrics, for dashboards, rules and documentation, which have to agree with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_surgery.engine.monitoring import metrics as loop_metrics
from vllm_surgery.engine.requests import metrics as slot_metrics
from vllm_surgery.engine.rescue import metrics as rescue_metrics
from vllm_surgery.engine.rescue.actions import NAMES as ACTIONS
from vllm_surgery.engine.swap import metrics as swap_metrics
from vllm_surgery.loops import KINDS

if TYPE_CHECKING:
    from vllm_surgery.engine.metrics import Spec

SPECS: tuple[Spec, ...] = (*loop_metrics.SPECS, *rescue_metrics.SPECS, *swap_metrics.SPECS, *slot_metrics.SPECS)

LABEL_VALUES: dict[str, tuple[str, ...]] = {
    "kind": tuple(KINDS),
    "loop": loop_metrics.LOOPED,
    "outcome": (*loop_metrics.OUTCOMES, *rescue_metrics.OUTCOMES),
    "action": ACTIONS,
    "state": (*swap_metrics.STATES, *slot_metrics.STATES),
    "result": swap_metrics.RESULTS,
    "phase": swap_metrics.PHASES,
}
"""What the labels can be that have no other values. ``finish_reason`` isn't here: vLLM adds reasons."""
