# SPDX-License-Identifier: Apache-2.0
"""Everything that is generated, checked against the metrics that the code defines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploy.monitoring import alerts, recording
from deploy.monitoring.catalog import Catalog
from deploy.monitoring.dashboard import dashboard
from deploy.monitoring.files import Data, Generated, json_file, yaml_file
from deploy.monitoring.promql import PromqlError

if TYPE_CHECKING:
    from collections.abc import Iterator

DASHBOARD = "grafana/dashboards/vllm-surgery.json"
RULES = {"recording": "prometheus/rules/recording.yml", "alerts": "prometheus/rules/alerts.yml"}
KUBERNETES_RULES = "kubernetes/prometheus_rule.yaml"


def generated() -> list[Generated]:
    """The files.

    Raises:
        PromqlError: a panel or a rule asks for a metric or label that the code doesn't define; says which.
    """
    shown, groups = dashboard(), [recording.group(), alerts.group()]
    check_dashboard(shown)
    check_rules(groups)
    return [
        json_file(DASHBOARD, shown),
        *(yaml_file(path, {"groups": [group]}) for path, group in zip(RULES.values(), groups, strict=True)),
        yaml_file(KUBERNETES_RULES, _prometheus_rule(groups)),
    ]


def check_dashboard(shown: Data) -> None:
    """Raises `PromqlError` where a panel, an annotation or a variable asks for what isn't there."""
    catalog = Catalog()
    for title, expression, legend in queries_of(shown):
        with _saying(title):
            catalog.check(expression, legend)
    for variable in shown["templating"]["list"]:
        if variable["type"] == "query":
            with _saying(f"variable {variable['name']}"):
                catalog.check_variable(variable["definition"])


def queries_of(shown: Data) -> Iterator[tuple[str, str, str]]:
    """Title, PromQL and legend of every query of a dashboard's panels and annotations."""
    for panel in shown["panels"]:
        for target in panel.get("targets", []):
            yield f"panel {panel['title']}", target["expr"], target["legendFormat"]
    for annotation in shown["annotations"]["list"]:
        legend = annotation["titleFormat"] + annotation["textFormat"]
        yield f"annotation {annotation['name']}", annotation["expr"], legend


def check_rules(groups: list[Data]) -> None:
    """Raises `PromqlError` where a rule asks for what isn't there."""
    catalog = Catalog(recording.recorded_labels())
    for rule in (rule for group in groups for rule in group["rules"]):
        with _saying(f"rule {rule.get('record') or rule['alert']}"):
            catalog.check(rule["expr"])


def _prometheus_rule(groups: list[Data]) -> Data:
    """The rules for the Prometheus operator."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "vllm-surgery", "labels": {"app.kubernetes.io/name": "vllm-surgery"}},
        "spec": {"groups": groups},
    }


class _saying:  # noqa: N801 - reads as the word it is in a `with`
    """Puts where it happened before an error."""

    def __init__(self, place: str) -> None:
        self._place = place

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, PromqlError):
            raise PromqlError(f"{self._place}: {error}") from None
