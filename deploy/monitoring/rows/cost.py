# SPDX-License-Identifier: Apache-2.0
"""What does it cost? Tokens that loops waste, and time that watching takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploy.monitoring.panels import KIND_COLORS, heatmap, query, timeseries
from deploy.monitoring.queries import ratio
from deploy.monitoring.rows.chosen import (
    INTERVAL,
    LOOPED_TOKENS,
    OUTPUT_TOKENS,
    increase_of,
    looped_share,
    rate_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deploy.monitoring.files import Data

_SECONDS = rate_of("vllm_surgery_detector_seconds_total", "instance")


def panels() -> Iterator[Data]:
    """Tokens, where they go, and watching."""
    yield timeseries(
        "Tokens in loops by kind",
        "Each second; counted when an answer ends.",
        [query(rate_of(LOOPED_TOKENS, "kind"), "{{kind}}")],
        "short",
        stacked=True,
        colors=KIND_COLORS,
    )
    yield timeseries(
        "Share of output in loops by patch",
        "Tokens in loops over all tokens. Tokens that are in loops of two kinds count twice.",
        [query(looped_share("patch"), "{{patch}}")],
        "percentunit",
    )
    yield _buckets("Where loops begin", "Output tokens before a loop's first.", "vllm_surgery_loop_onset_tokens")
    yield _buckets("What repeats", "Tokens in one copy of it.", "vllm_surgery_loop_period_tokens")
    yield timeseries(
        "Time spent on watching",
        "Of one core of the API process.",
        [query(_SECONDS, "{{instance}}")],
        "percentunit",
    )
    yield timeseries(
        "Time spent on watching each token",
        "Averaged over all requests.",
        [query(ratio(_SECONDS, rate_of(OUTPUT_TOKENS, "instance")), "{{instance}}")],
        "s",
    )


def _buckets(title: str, description: str, metric: str) -> Data:
    first = "A patch's first loop of each kind is not in it, since its series begins with that loop."
    return heatmap(title, f"{description} {first}", increase_of(f"{metric}_bucket", "le", INTERVAL), "short")
