# SPDX-License-Identifier: Apache-2.0
"""Is it well? What is active and desired, how swaps ended, what detectors missed.

Of all patches, chosen or not: one whose swap failed has no answers, so that it can't be chosen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploy.monitoring.panels import query, sized, state_timeline, table, timeseries
from deploy.monitoring.queries import REQUESTS, ratio
from deploy.monitoring.rows.chosen import FLEET, increase_of, rate_of, value_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deploy.monitoring.files import Data


def panels() -> Iterator[Data]:
    """Patches, swaps, detectors, answers."""
    yield _patches_that_are("active", "What is served.")
    yield _patches_that_are(
        "desired", "What the followed files ask for. Empty where none are followed, or where they are refused."
    )
    yield from _swaps()
    yield timeseries(
        "Slots",
        "Those whose patch requests can choose, and those that are free. None on servers without slots.",
        [query(value_of("vllm_surgery_slots", "instance, state", FLEET), "{{instance}} {{state}}")],
        "short",
    )
    yield timeseries(
        "Answers not watched to their end",
        "Because a detector failed.",
        [query(increase_of("vllm_surgery_detector_errors_total", "instance", matchers=FLEET), "{{instance}}")],
        "short",
    )
    yield timeseries(
        "Answers by finish reason",
        "Each second.",
        [query(rate_of(REQUESTS, "finish_reason"), "{{finish_reason}}")],
        "reqps",
        stacked=True,
    )


def _patches_that_are(state: str, description: str) -> Data:
    expression = f'max by (instance, patch) (vllm_surgery_patch_info{{{FLEET}, state="{state}"}}) == 1'
    return sized(state_timeline(f"Patch: {state}", description, expression, "{{instance}} {{patch}}"), 12, 6)


def _swaps() -> Iterator[Data]:
    # Neither is a rate: a patch's series begin with its first swap, of which a rate sees nothing.
    yield table(
        "Swaps",
        "Since each server's start.",
        {"instance": "Instance", "patch": "Patch", "result": "Result"},
        [("Swaps", value_of("vllm_surgery_swaps_total", "instance, patch, result", FLEET), "short")],
    )
    sums, counts = (value_of(f"vllm_surgery_swap_seconds_{part}", "phase", FLEET) for part in ("sum", "count"))
    yield timeseries(
        "Time that swaps took",
        "Averages since each server's start, by phase. Tokens stand still from pause on.",
        [query(ratio(sums, counts), "{{phase}}")],
        "s",
    )
