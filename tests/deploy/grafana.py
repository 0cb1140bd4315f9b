# SPDX-License-Identifier: Apache-2.0
"""What Grafana does to a query before Prometheus gets it."""

from __future__ import annotations

import re

WINDOWS = {"$__rate_interval": "1m", "$__range": "1h", "$window": "15m"}


def as_sent(expression: str) -> str:
    """A panel's query with its variables filled in: all jobs, models, instances and patches, the last hour."""
    for variable, length in WINDOWS.items():
        expression = expression.replace(f"[{variable}]", f"[{length}]")
    return re.sub(r"\$\w+", ".*", expression)
