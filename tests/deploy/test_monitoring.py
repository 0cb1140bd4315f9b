# SPDX-License-Identifier: Apache-2.0
"""The dashboard and the rules: current, valid, about metrics that exist, and firing when they should."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.multiprocess import MultiProcessCollector

from deploy.monitoring import __main__ as command
from deploy.monitoring import generate, queries
from deploy.monitoring.alerts import ALERTS, BOUND, ENOUGH
from deploy.monitoring.catalog import exposed
from deploy.monitoring.dashboard import dashboard
from deploy.monitoring.files import DEPLOY
from deploy.monitoring.promql import PromqlError
from tests.deploy.grafana import as_sent
from tests.deploy.prometheus import needs_prometheus, promtool
from vllm_surgery.engine.metric_catalog import LABEL_VALUES, SPECS
from vllm_surgery.engine.metrics import Metrics, Spec
from vllm_surgery.engine.monitoring import metrics as loop_metrics
from vllm_surgery.engine.requests import metrics as slot_metrics
from vllm_surgery.engine.rescue import metrics as rescue_metrics
from vllm_surgery.engine.swap import metrics as swap_metrics
from vllm_surgery.intervals import wilson

if TYPE_CHECKING:
    from pathlib import Path

TESTS = sorted((DEPLOY / "prometheus" / "tests").glob("*.yml"))
NEARLY = 2e-5
"""The two compute with 1.96 and with 1.959964."""


# The metrics that are known.


def test_every_metric_of_the_code_is_listed() -> None:
    modules = (loop_metrics, rescue_metrics, swap_metrics, slot_metrics)
    defined = [spec for module in modules for spec in vars(module).values() if isinstance(spec, Spec)]
    assert sorted(defined, key=id) == sorted(SPECS, key=id)


def test_labels_with_listed_values_are_labels() -> None:
    assert set(LABEL_VALUES) < {label for spec in SPECS for label in spec.labels}


def test_names_and_labels_are_those_that_prometheus_shows() -> None:
    registry = CollectorRegistry()
    count_everything(Metrics(registry))
    assert shown_by(registry) == KNOWN


def test_they_are_the_same_where_api_processes_share_them(tmp_path: Path) -> None:
    code = "from tests.deploy.test_monitoring import Metrics, count_everything; count_everything(Metrics())"
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=DEPLOY.parent, check=True)
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(tmp_path))
    assert shown_by(registry) == KNOWN


KNOWN = {name: labels for spec in SPECS for name, labels in exposed(spec).items()}


def count_everything(metrics: Metrics) -> None:
    """Makes one series of each metric."""
    for spec in SPECS:
        labels = ["x" for _ in spec.labels]
        series = metrics.series(spec, "m", "none", *labels) if spec.by_patch else metrics.total(spec, "m", *labels)
        getattr(series, {Counter: "inc", Gauge: "set", Histogram: "observe"}[spec.type])(1)


def shown_by(registry: CollectorRegistry) -> dict[str, frozenset[str]]:
    """The labels of each name on a page."""
    return {
        sample.name: frozenset(sample.labels)
        for metric in registry.collect()
        for sample in metric.samples
        if not sample.name.endswith("_created")
    }


# What is generated.


def test_the_files_are_current() -> None:
    assert [file.path for file in generate.generated() if not file.is_current()] == []


def test_a_stale_file_is_named_and_then_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = generate.generated()
    for file in files:
        file.write(tmp_path)
    (tmp_path / files[0].path).write_text("{}")
    assert [file.path for file in files if not file.is_current(tmp_path)] == [files[0].path]
    monkeypatch.setattr(command, "generated", lambda: [_In(tmp_path, file) for file in files])
    monkeypatch.setattr("sys.argv", ["monitoring", "--check"])
    assert command.main() == 1
    assert "is not current: run `python -m deploy.monitoring`" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["monitoring"])
    assert command.main() == 0
    assert (tmp_path / files[0].path).read_text() == files[0].content


class _In:
    """A generated file in another folder."""

    def __init__(self, folder: Path, file: Any) -> None:
        self._folder, self._file, self.path = folder, file, file.path

    def write(self) -> None:
        self._file.write(self._folder)

    def is_current(self) -> bool:
        return bool(self._file.is_current(self._folder))


def test_a_panel_that_asks_for_what_is_not_there_is_refused() -> None:
    shown = copy.deepcopy(dashboard())
    panel = next(each for each in shown["panels"] if each["type"] == "timeseries")
    panel["targets"][0]["expr"] = "vllm_surgery_lops_total"
    with pytest.raises(PromqlError, match=f"^panel {panel['title']}: no such metric: vllm_surgery_lops_total$"):
        generate.check_dashboard(shown)


def test_a_rule_that_asks_for_what_is_not_there_is_refused() -> None:
    group = {"rules": [{"alert": "Wrong", "expr": 'vllm_surgery_swaps_total{result="undon"} > 0'}]}
    with pytest.raises(PromqlError, match=r"^rule Wrong: vllm_surgery_swaps_total: result is never undon$"):
        generate.check_rules([group])


# The dashboard.


def test_panels_do_not_overlap_and_stay_on_the_page() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + right, place["y"] + down) for right in range(place["w"]) for down in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_every_panel_says_what_it_shows() -> None:
    assert all(panel["description"] for panel in dashboard()["panels"] if panel["type"] != "row")


def test_every_variable_of_a_query_is_defined() -> None:
    shown = dashboard()
    defined = {variable["name"] for variable in shown["templating"]["list"]}
    used = {name for _, text, _ in generate.queries_of(shown) for name in re.findall(r"\$(\w+)", text)}
    assert {name for name in used if not name.startswith("__")} <= defined


@needs_prometheus
def test_every_query_is_valid_promql(tmp_path: Path) -> None:
    asked = [as_sent(text) for _, text, _ in generate.queries_of(dashboard())]
    rules = [{"record": f"query:{number}", "expr": text} for number, text in enumerate(asked)]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    checked = promtool("check", "rules", file)
    assert checked.returncode == 0, checked.stdout
    assert f"{len(asked)} rules found" in checked.stdout


# The rules.


@needs_prometheus
def test_the_configuration_and_rules_are_valid() -> None:
    checked = promtool("check", "config", DEPLOY / "prometheus" / "prometheus.yml")
    assert checked.returncode == 0, checked.stdout


@pytest.mark.slow
@needs_prometheus
@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.stem)
def test_rules_do_what_their_tests_say(file: Path) -> None:
    tested = promtool("test", "rules", file)
    assert tested.returncode == 0, tested.stdout


def test_every_alert_is_seen_firing_and_seen_quiet() -> None:
    checks = [
        check
        for file in TESTS
        for case in yaml.safe_load(file.read_text())["tests"]
        for check in case["promql_expr_test"]
    ]
    for alert in ALERTS:
        seen = {bool(check["exp_samples"]) for check in checks if f'"{alert.name}"' in check["expr"]}
        assert seen == {True, False}, alert.name


def test_six_loops_are_the_fewest_that_speak_for_too_many() -> None:
    assert wilson(5, ENOUGH).low < BOUND < wilson(6, ENOUGH).low


@needs_prometheus
@pytest.mark.parametrize(("loops", "answers"), [(0, 7), (3, 10), (29, 48), (12, 12)])
def test_promql_computes_the_wilson_interval(tmp_path: Path, loops: int, answers: int) -> None:
    expected = wilson(loops, answers)
    differences = [
        f"abs({queries.wilson('k', 'n', 'lower')} - {expected.low}) < bool {NEARLY}",
        f"abs({queries.wilson('k', 'n', 'upper')} - {expected.high}) < bool {NEARLY}",
    ]
    _holds(tmp_path, {"k": loops, "n": answers}, differences)


@needs_prometheus
@pytest.mark.parametrize(
    ("arm", "control", "low", "high"),
    [((56, 70), (48, 80), 0.0524, 0.3339), ((9, 10), (3, 10), 0.1705, 0.8090), ((0, 10), (0, 10), -0.2775, 0.2775)],
    ids=["large", "small", "nothing"],
)
def test_promql_computes_newcombes_interval(
    tmp_path: Path, arm: tuple[int, int], control: tuple[int, int], low: float, high: float
) -> None:
    """The examples (a), (c) and (h) of Newcombe's Table II."""
    values = dict(zip("knlm", (*arm, *control), strict=True))
    found = {bound: queries.newcombe(("k", "n"), ("l", "m"), bound) for bound in ("lower", "upper")}
    _holds(
        tmp_path, values, [f"abs({found['lower']} - {low}) < bool 1e-4", f"abs({found['upper']} - {high}) < bool 1e-4"]
    )


@needs_prometheus
def test_promql_says_how_many_answers_are_still_needed(tmp_path: Path) -> None:
    needed = queries.still_needed(("k", "n"), ("l", "m"))
    # Of rates of 20 % and 10 %, by the usual formula: 7.849 (0.2 x 0.8 + 0.1 x 0.9) / 0.1 ^ 2 = 196.2 an arm.
    _holds(tmp_path, {"k": 20, "n": 100, "l": 10, "m": 100}, [f"abs({needed} - 96.2) < bool 0.1"])
    _holds(tmp_path, {"k": 200, "n": 1000, "l": 100, "m": 1000}, [f"{needed} == bool 0"])
    _holds(tmp_path, {"k": 10, "n": 100, "l": 10, "m": 100}, [f"absent({needed})"])


@needs_prometheus
def test_more_loops_than_answers_are_no_more_than_all(tmp_path: Path) -> None:
    between = f"{queries.wilson('k', 'n', 'lower')} < bool {queries.wilson('k', 'n', 'upper')}"
    _holds(tmp_path, {"k": 13, "n": 12}, [between, f"{queries.wilson('k', 'n', 'upper')} <= bool 1"])


@needs_prometheus
@pytest.mark.parametrize("expression", [queries.wilson("k", "n", "lower"), queries.ratio("k", "n")])
def test_without_answers_there_is_no_rate(tmp_path: Path, expression: str) -> None:
    _holds(tmp_path, {"k": 0, "n": 0}, [f"absent({expression})"])


def _holds(folder: Path, values: dict[str, int], expressions: list[str]) -> None:
    """Asks Prometheus' own engine whether each expression is 1."""
    checks = [{"expr": text, "eval_time": "0m", "exp_samples": [{"labels": "{}", "value": 1}]} for text in expressions]
    series = [{"series": name, "values": str(value)} for name, value in values.items()]
    case = {"interval": "1m", "input_series": series, "promql_expr_test": checks}
    file = folder / "case.yml"
    file.write_text(yaml.safe_dump({"rule_files": [], "evaluation_interval": "1m", "tests": [case]}))
    tested = promtool("test", "rules", file)
    assert tested.returncode == 0, tested.stdout
