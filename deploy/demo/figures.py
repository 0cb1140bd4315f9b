# SPDX-License-Identifier: Apache-2.0
"""What a server's ``/metrics`` say of its answers so far."""

from __future__ import annotations

from collections import defaultdict

import httpx
from prometheus_client.parser import text_string_to_metric_families

from deploy.monitoring.queries import LOOPS, REQUESTS


def figures(url: str) -> str:
    """Loops and answers by patch, in one line."""
    return summary(httpx.get(f"{url}/metrics", timeout=30).raise_for_status().text)


def summary(metrics: str) -> str:
    """The same from the text of ``/metrics``."""
    answers, loops = _by_patch(metrics, REQUESTS), _by_patch(metrics, LOOPS)
    said = [
        f"{patch}: {loops[patch]:.0f} loops in {number:.0f} answers ({loops[patch] / number:.0%})"
        for patch, number in answers.items()
        if number
    ]
    return "; ".join(said) or "no answers yet"


def _by_patch(metrics: str, name: str) -> defaultdict[str, float]:
    found: defaultdict[str, float] = defaultdict(float)
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            if sample.name == name:
                found[sample.labels["patch"]] += sample.value
    return found
