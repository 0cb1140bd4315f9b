# SPDX-License-Identifier: Apache-2.0
"""Grafana's panels, as the JSON model of Grafana 10.4 and later has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploy.monitoring.files import Data

SOURCE: Data = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24
"""Of the page, in Grafana's units."""

KIND_COLORS = {"verbatim": "orange", "decay": "purple", "collapse": "blue", "doom": "red"}
_NO_TRAFFIC = "No answers"


def query(expression: str, legend: str = "__auto", *, form: str = "time_series", instant: bool = False) -> Data:
    """One query of a panel; `form` is Grafana's name for the shape of its result."""
    asked = {"expr": expression, "legendFormat": legend, "format": form, "datasource": SOURCE}
    return {**asked, "instant": instant, "range": not instant}


def stat(title: str, description: str, expression: str, unit: str) -> Data:
    """One number for all of the time that is shown."""
    field = {"unit": unit, "noValue": _NO_TRAFFIC, "color": {"mode": "fixed", "fixedColor": "blue"}}
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "none",
        "graphMode": "none",
        "textMode": "value",
    }
    return sized(_panel("stat", title, description, [query(expression, instant=True)], field, options), WIDTH // 6, 4)


def timeseries(
    title: str,
    description: str,
    queries: Sequence[Data],
    unit: str,
    *,
    stacked: bool = False,
    colors: dict[str, str] | None = None,
) -> Data:
    """Lines over time."""
    custom: Data = {"fillOpacity": 25 if stacked else 8, "lineWidth": 1, "showPoints": "never", "spanNulls": False}
    if stacked:
        custom["stacking"] = {"mode": "normal", "group": "A"}
    field = {"unit": unit, "min": 0, "color": {"mode": "palette-classic"}, "custom": custom, "noValue": _NO_TRAFFIC}
    options = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    panel = _panel("timeseries", title, description, queries, field, options)
    panel["fieldConfig"]["overrides"] = [_colored(name, color) for name, color in (colors or {}).items()]
    return panel


def band(title: str, description: str, middle: str, lower: str, upper: str, repeat: str) -> Data:
    """A share over time with its confidence band, once for each value of the variable `repeat`."""
    queries = [query(middle, "rate"), query(lower, "lower"), query(upper, "upper")]
    panel = timeseries(title, description, queries, "percentunit")
    panel["fieldConfig"]["defaults"]["max"] = 1
    quiet = {"id": "custom.lineWidth", "value": 0}
    panel["fieldConfig"]["overrides"] = [
        _override("rate", [{"id": "custom.lineWidth", "value": 2}, _fixed("blue")]),
        _override("lower", [quiet, _fixed("light-blue"), {"id": "custom.fillOpacity", "value": 0}]),
        _override(
            "upper",
            [
                quiet,
                _fixed("light-blue"),
                {"id": "custom.fillBelowTo", "value": "lower"},
                {"id": "custom.fillOpacity", "value": 25},
            ],
        ),
    ]
    return {**panel, "repeat": repeat, "repeatDirection": "h", "maxPerRow": 3}


def heatmap(title: str, description: str, expression: str, unit: str) -> Data:
    """How a histogram's buckets fill over time."""
    options = {
        "calculate": False,
        "cellGap": 1,
        "color": {"mode": "scheme", "scheme": "Blues", "steps": 64, "scale": "exponential", "exponent": 0.5},
        "filterValues": {"le": 1e-9},
        "rowsFrame": {"layout": "auto"},
        "tooltip": {"mode": "single", "yHistogram": True, "showColorScale": False},
        "yAxis": {"axisPlacement": "left", "unit": unit},
        "legend": {"show": True},
    }
    return _panel("heatmap", title, description, [query(expression, "{{le}}", form="heatmap")], {}, options)


def table(title: str, description: str, labels: dict[str, str], columns: Sequence[tuple[str, str, str]]) -> Data:
    """A line for each combination of labels.

    Args:
        title: of the panel.
        description: of the panel.
        labels: the label columns, with their headings.
        columns: heading, PromQL and unit of each other column.
    """
    queries = [query(expression, form="table", instant=True) for _, expression, _ in columns]
    values = {f"Value #{_reference(number)}": heading for number, (heading, _, _) in enumerate(columns)}
    if len(columns) == 1:  # Grafana numbers the columns of several queries only.
        values["Value"] = columns[0][0]
    order = {name: place for place, name in enumerate([*labels, *values])}
    organize = {"excludeByName": {"Time": True}, "indexByName": order, "renameByName": {**labels, **values}}
    options = {"showHeader": True, "cellHeight": "sm", "footer": {"show": False}}
    panel = _panel("table", title, description, queries, {"custom": {"align": "auto"}}, options)
    panel["fieldConfig"]["overrides"] = [
        _override(heading, [{"id": "unit", "value": unit}]) for heading, _, unit in columns
    ]
    transformations = [{"id": "merge", "options": {}}, {"id": "organize", "options": organize}]
    return {**panel, "transformations": transformations}


def state_timeline(title: str, description: str, expression: str, legend: str) -> Data:
    """When each series was 1."""
    mappings = [{"type": "value", "options": {"1": {"text": "yes", "color": "green", "index": 0}}}]
    field = {"mappings": mappings, "color": {"mode": "fixed", "fixedColor": "green"}, "custom": {"fillOpacity": 70}}
    options = {"mergeValues": True, "showValue": "never", "rowHeight": 0.8, "legend": {"showLegend": False}}
    return _panel("state-timeline", title, description, [query(expression, legend)], field, options)


def row(title: str) -> Data:
    """A heading."""
    return sized({"type": "row", "title": title, "collapsed": False, "panels": []}, WIDTH, 1)


def sized(panel: Data, width: int, height: int) -> Data:
    """The panel in another size."""
    return {**panel, "gridPos": {"w": width, "h": height}}


def _panel(
    kind: Literal["stat", "timeseries", "heatmap", "table", "state-timeline"],
    title: str,
    description: str,
    queries: Sequence[Data],
    field: Data,
    options: Data,
) -> Data:
    return {
        "type": kind,
        "gridPos": {"w": WIDTH // 2, "h": 8},
        "title": title,
        "description": description,
        "datasource": SOURCE,
        "targets": [{"refId": _reference(number), **each} for number, each in enumerate(queries)],
        "fieldConfig": {"defaults": field, "overrides": []},
        "options": options,
    }


def _reference(number: int) -> str:
    return chr(ord("A") + number)


def _override(name: str, properties: list[Data]) -> Data:
    return {"matcher": {"id": "byName", "options": name}, "properties": properties}


def _fixed(color: str) -> Data:
    return {"id": "color", "value": {"mode": "fixed", "fixedColor": color}}


def _colored(name: str, color: str) -> Data:
    return _override(name, [_fixed(color)])
