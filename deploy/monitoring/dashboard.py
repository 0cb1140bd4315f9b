# SPDX-License-Identifier: Apache-2.0
"""The Grafana dashboard: variables, annotations, and panels in their places."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploy.monitoring.panels import SOURCE, WIDTH
from deploy.monitoring.queries import REQUESTS
from deploy.monitoring.rows import all_panels
from deploy.monitoring.rows.chosen import FLEET

if TYPE_CHECKING:
    from deploy.monitoring.files import Data

TITLE, UID = "vllm-surgery", "vllm-surgery"
SCHEMA_VERSION = 39
"""Grafana 10.4's. Later ones read it and migrate it."""

_SWAPPED = (
    f'max by (instance, patch) (vllm_surgery_patch_info{{{FLEET}, state="active"}}) == 1\n'
    f'unless max by (instance, patch) (vllm_surgery_patch_info{{{FLEET}, state="active"}} offset 1m) == 1'
)
"""What is active and wasn't a minute before: a swap, or a server's start."""


def dashboard() -> Data:
    """All of it."""
    return {
        "uid": UID,
        "title": TITLE,
        "description": "Does the model loop, and did the surgery help?",
        "tags": ["vllm", "vllm-surgery"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "time": {"from": "now-6h", "to": "now"},
        "refresh": "30s",
        "timezone": "browser",
        "links": _links(),
        "annotations": {"list": [_swaps()]},
        "templating": {"list": _variables()},
        "panels": _placed(),
    }


def _links() -> list[Data]:
    """VLLM's own dashboards all have this tag."""
    return [
        {
            "type": "dashboards",
            "title": "vLLM",
            "tags": ["vllm"],
            "asDropdown": True,
            "includeVars": True,
            "keepTime": True,
            "targetBlank": False,
        }
    ]


def _swaps() -> Data:
    return {
        "name": "Swaps",
        "enable": True,
        "iconColor": "green",
        "datasource": SOURCE,
        "expr": _SWAPPED,
        "step": "30s",
        "titleFormat": "{{patch}}",
        "textFormat": "active on {{instance}}",
    }


def _variables() -> list[Data]:
    return [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
        _variable("job", "Job", f"label_values({REQUESTS}, job)"),
        _variable("model", "Model", f'label_values({REQUESTS}{{job=~"$job"}}, model_name)'),
        _variable("instance", "Instance", f'label_values({REQUESTS}{{job=~"$job", model_name=~"$model"}}, instance)'),
        _variable("patch", "Patch", f"label_values({REQUESTS}{{{FLEET}}}, patch)"),
        _window(),
    ]


def _variable(name: str, label: str, query: str) -> Data:
    """One that offers a label's values, all of them at first."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "definition": query,
        "query": {"query": query, "refId": f"Prometheus-{name}"},
        "multi": True,
        "includeAll": True,
        "allValue": ".*",  # Else All would leave out what came since the page was loaded, such as a new patch.
        "current": {"text": ["All"], "value": ["$__all"]},
        "refresh": 2,  # Whenever the time that is shown is changed.
        "sort": 1,
    }


def _window() -> Data:
    """Over how long a rate is taken. Loops are rare events, so it is longer than for a rate of requests."""
    lengths = ["5m", "15m", "1h", "6h"]
    return {
        "name": "window",
        "label": "Rates over",
        "type": "custom",
        "query": ",".join(lengths),
        "current": {"text": "15m", "value": "15m"},
        "options": [{"text": each, "value": each, "selected": each == "15m"} for each in lengths],
    }


def _placed() -> list[Data]:
    """The panels with their ids and places: left to right, and on to the next line where one is full."""
    placed: list[Data] = []
    x = y = tallest = 0
    for number, panel in enumerate(all_panels(), start=1):
        width, height = panel["gridPos"]["w"], panel["gridPos"]["h"]
        if x + width > WIDTH:
            x, y, tallest = 0, y + tallest, 0
        placed.append({"id": number, **panel, "gridPos": {"x": x, "y": y, "w": width, "h": height}})
        x, tallest = x + width, max(tallest, height)
    return placed
