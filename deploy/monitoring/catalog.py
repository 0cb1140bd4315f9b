# SPDX-License-Identifier: Apache-2.0
"""Which metrics there are, and whether an expression asks for others."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from prometheus_client import Histogram

from deploy.monitoring.promql import Matcher, PromqlError, Selector, read
from vllm_surgery.engine.metric_catalog import LABEL_VALUES, SPECS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm_surgery.engine.metrics import Spec

TARGET_LABELS = frozenset({"job", "instance"})
"""What Prometheus itself adds to all that it scrapes."""

OF_VLLM = {"vllm:generation_tokens_total": frozenset({"model_name", "engine"})}
"""Metrics of vLLM's own that are asked for. That they are there is for the test of the whole stack to see."""

_VARIABLE_QUERY = re.compile(r"label_values\((?P<selector>.+), *(?P<label>\w+)\)")
_LEGEND_LABEL = re.compile(r"{{ *(\w+) *}}")


class Catalog:
    """The metrics that may be asked for.

    Args:
        recorded: labels of what recording rules add, by name.
    """

    def __init__(self, recorded: Mapping[str, frozenset[str]] | None = None) -> None:
        ours = {name: labels | TARGET_LABELS for spec in SPECS for name, labels in exposed(spec).items()}
        vllms = {name: labels | TARGET_LABELS for name, labels in OF_VLLM.items()}
        self._labels = {**ours, **vllms, **(recorded or {})}

    def check(self, expression: str, legend: str = "") -> None:
        """Refuses an expression that asks for what isn't there.

        Args:
            expression: PromQL.
            legend: Grafana's name for its series, with labels in double braces.

        Raises:
            PromqlError: a metric, label or label's value in it doesn't exist, or it isn't PromQL.
        """
        found = read(expression)
        if not found.selectors:
            raise PromqlError(f"no metric: {expression}")
        for selector in found.selectors:
            self._check_selector(selector)
        known = frozenset[str]().union(*(self._labels[selector.metric] for selector in found.selectors))
        for label in (*found.matched_on, *_LEGEND_LABEL.findall(legend)):
            if label not in known:
                raise PromqlError(f"no metric here has the label {label}: {expression}")

    def check_variable(self, query: str) -> None:
        """The same for a dashboard's variable, a ``label_values(selector, label)``."""
        match = _VARIABLE_QUERY.fullmatch(query)
        if match is None:
            raise PromqlError(f"not label_values(selector, label): {query}")
        self.check(match["selector"], f"{{{{{match['label']}}}}}")

    def _check_selector(self, selector: Selector) -> None:
        if selector.metric not in self._labels:
            raise PromqlError(f"no such metric: {selector.metric}")
        labels = self._labels[selector.metric]
        for label in (*(matcher.label for matcher in selector.matchers), *selector.grouped_by):
            if label not in labels:
                raise PromqlError(f"{selector.metric} has no label {label}")
        for matcher in selector.matchers:
            _check_value(selector.metric, matcher)


def _check_value(metric: str, matcher: Matcher) -> None:
    if matcher.label not in LABEL_VALUES or "$" in matcher.value:
        return
    for value in matcher.value.split("|") if "~" in matcher.operator else [matcher.value]:
        if value not in LABEL_VALUES[matcher.label]:
            raise PromqlError(f"{metric}: {matcher.label} is never {value}")


def exposed(spec: Spec) -> dict[str, frozenset[str]]:
    """The names under which a metric's series are shown, with their labels."""
    labels = frozenset(spec.all_labels)
    if spec.type is not Histogram:
        return {spec.name: labels}
    return {f"{spec.name}_bucket": labels | {"le"}, f"{spec.name}_sum": labels, f"{spec.name}_count": labels}
