# SPDX-License-Identifier: Apache-2.0
"""Queries for what the reader of the dashboard has chosen: jobs, instances, models, patches, and a length of time."""

from __future__ import annotations

from deploy.monitoring.queries import LOOPS, REQUESTS, now, ratio, total

FLEET = 'job=~"$job", instance=~"$instance", model_name=~"$model"'
CHOSEN = f'{FLEET}, patch=~"$patch"'
LOOPED_TOKENS, OUTPUT_TOKENS = "vllm_surgery_looped_tokens_total", "vllm_surgery_output_tokens_total"
WINDOW, RANGE, INTERVAL = "$window", "$__range", "$__rate_interval"
"""What the reader chose for rates; all of the time that is shown; the shortest that Grafana finds sound."""

COUNTS_TWICE = "An answer that loops in two ways counts twice."


def increase_of(metric: str, by: str = "", window: str = WINDOW, matchers: str = CHOSEN) -> str:
    """How much a counter grew."""
    return total("increase", f"{metric}{{{matchers}}}", window, by)


def rate_of(metric: str, by: str = "") -> str:
    """How fast a counter grows."""
    return total("rate", f"{metric}{{{CHOSEN}}}", INTERVAL, by)


def value_of(metric: str, by: str = "", matchers: str = CHOSEN) -> str:
    """What a gauge is, or a counter since its server's start."""
    return now(f"{metric}{{{matchers}}}", by)


def loop_rate(by: str = "", window: str = WINDOW) -> str:
    """Loops for each answer."""
    return ratio(increase_of(LOOPS, by, window), increase_of(REQUESTS, by, window))


def looped_share(by: str = "", window: str = WINDOW) -> str:
    """Tokens in loops for each token."""
    return ratio(increase_of(LOOPED_TOKENS, by, window), increase_of(OUTPUT_TOKENS, by, window))
