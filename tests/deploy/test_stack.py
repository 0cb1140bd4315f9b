# SPDX-License-Identifier: Apache-2.0
"""The whole stack: Prometheus scrapes a server whose model loops, a swap in between, and every query has an answer."""

from __future__ import annotations

import math
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from transformers import AutoTokenizer

from deploy.monitoring import generate, queries, recording
from deploy.monitoring.alerts import ALERTS, NOT_DESIRED
from deploy.monitoring.dashboard import dashboard
from deploy.monitoring.promql import read
from deploy.monitoring.rows.chosen import RANGE, loop_rate
from tests.deploy.grafana import as_sent
from tests.deploy.prometheus import Prometheus, needs_prometheus, running_prometheus
from tests.engine.server import SMALL, running_server
from vllm_surgery import load_patch
from vllm_surgery.client.client import SurgeryClient
from vllm_surgery.evaluation.probes import load_probes
from vllm_surgery.intervals import wilson
from vllm_surgery.loops import Ending, TokenTable, detect

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.engine, needs_prometheus]

MODEL = "smollm2"
OPTIONS = ("--served-model-name", MODEL, "--dtype", "float32", "--max-model-len", "1024")
TOKENS = 256
"""At most, for each answer: as many as the shipped patch's own figures were taken with."""

TESTS = Path(__file__).parents[1]
LISTS = [probe.prompt for probe in load_probes("lists").probes[:9]]
"""On which the model often loops."""

QUESTIONS = (TESTS / "corpora" / "data" / "chat_prompts.txt").read_text().splitlines()[:3]
"""Which it answers well."""

SIGNED = ("panel Difference to requests without a patch", "panel Patches against no patch")
"""Panels of differences, which are below zero where a patch helps."""

RIGHTLY_EMPTY = {
    # Of a day that ended an hour ago, when there was no server.
    "rule job_model:vllm_surgery_requests:increase1d",
    "rule job_model:vllm_surgery_loops:increase1d",
    # Nothing is wrong but what the test does itself: see `test_the_one_alert_...`.
    *(f"rule {alert.name}" for alert in ALERTS if alert is not NOT_DESIRED),
}
NEVER_MADE = {
    # Recorded from that day.
    "job_model:vllm_surgery_requests:increase1d",
    "job_model:vllm_surgery_loops:increase1d",
    "vllm_surgery_rescues_total",  # This server rescues nothing.
}
OF_OTHER_SERVERS = {
    "panel Rescues by action",
    "panel Rescues by outcome",
    "panel Tokens that rescues saved or took back",
    "panel Slots",
}
"""Panels of what this server wasn't started with."""


@dataclass(frozen=True)
class Run:
    """What happened.

    Attributes:
        prometheus: what saw it.
        answers: the token ids of each answer, by patch.
        table: what tokens are as text.
        started: when the first request was sent, in seconds of a monotonic clock.
    """

    prometheus: Prometheus
    answers: dict[str, list[list[int]]]
    table: TokenTable
    started: float

    def loops(self, patch: str) -> Counter[str]:
        """Answers that loop under a patch, once for each kind, as the detectors say that have read them."""
        found: Counter[str] = Counter()
        for answer in self.answers[patch]:
            ending: Ending = "cut" if len(answer) == TOKENS else "stop"
            found.update({loop.kind for loop in detect(answer, self.table, ending=ending)})
        return found

    def loop_rate(self, patch: str) -> float:
        """From the answers themselves."""
        return self.loops(patch).total() / len(self.answers[patch])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, demo_model: Path, shipped_patch: Path) -> Iterator[Run]:
    """Traffic with the shipped patch, a swap to none, and the same traffic again."""
    folder = tmp_path_factory.mktemp("stack")
    table = TokenTable.from_tokenizer(AutoTokenizer.from_pretrained(demo_model))
    watch = ("--patch", str(shipped_patch), "--watch")
    with (
        running_server(folder, str(demo_model), *OPTIONS, *SMALL, *watch) as server,
        running_prometheus(folder, server.url.removeprefix("http://")) as prometheus,
    ):
        prometheus.wait_for("sum(vllm_surgery_requests_total)", lambda values: values == [0])
        started = time.monotonic()
        patched = load_patch(shipped_patch).id
        answers = {patched: _ask_all(server.url, prometheus, patched)}
        SurgeryClient(server.url).swap([])
        answers["none"] = _ask_all(server.url, prometheus, "none")
        number = sum(map(len, answers.values()))
        prometheus.wait_for("sum(vllm_surgery_requests_total)", lambda values: values == [number])
        prometheus.wait_for(f"sum({recording.ANSWERS.name})", lambda values: values and values[0] > 0)
        for _ in range(2):  # Alerts and rules may be made of what other rules recorded the time before.
            prometheus.wait_for_rules()
        yield Run(prometheus, answers, table, started)


def _ask_all(url: str, prometheus: Prometheus, patch: str) -> list[list[int]]:
    with ThreadPoolExecutor(len(LISTS) + len(QUESTIONS)) as pool:
        asked = [pool.submit(_ask, url, prompt) for prompt in LISTS]
        # Lists take long, other answers don't: Prometheus is to see the patch's counters at zero, without which an
        # increase misses what they begin with.
        prometheus.wait_for(f'vllm_surgery_requests_total{{patch="{patch}"}}')
        asked += [pool.submit(_ask, url, prompt) for prompt in QUESTIONS]
        return [answer.result() for answer in asked]


def _ask(url: str, prompt: str) -> list[int]:
    messages = [{"role": "user", "content": prompt}]
    body: dict[str, Any] = {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": TOKENS}
    response = httpx.post(f"{url}/v1/chat/completions", json={**body, "return_token_ids": True}, timeout=None)
    assert response.is_success, response.text
    tokens: list[int] = response.json()["choices"][0]["token_ids"]
    return tokens


def test_the_model_loops_with_the_patch_and_without(run: Run) -> None:
    assert all(run.loops(patch) for patch in run.answers), "or what follows shows nothing"


def test_prometheus_counts_what_the_detectors_find_in_the_answers(run: Run) -> None:
    by_patch = run.prometheus.by("patch", "sum by (patch) (vllm_surgery_requests_total)")
    assert by_patch == {patch: len(answers) for patch, answers in run.answers.items()}
    tokens = run.prometheus.by("patch", "sum by (patch) (vllm_surgery_output_tokens_total)")
    assert tokens == {patch: sum(map(len, answers)) for patch, answers in run.answers.items()}
    for patch in run.answers:
        counted = run.prometheus.by("kind", f'sum by (kind) (vllm_surgery_loops_total{{patch="{patch}"}}) > 0')
        assert counted == run.loops(patch)


def test_every_token_that_vllm_made_was_watched(run: Run) -> None:
    by = "sum by (job, instance, model_name)"
    assert run.prometheus.ask(f"{by} (vllm_surgery_output_tokens_total) == {by} (vllm:generation_tokens_total)")


def test_the_dashboards_loop_rates_are_those_of_the_answers(run: Run) -> None:
    rates = run.prometheus.by("patch", as_sent(loop_rate("patch", RANGE)))
    print(f"loop rate by patch: Prometheus {rates}, answers", {patch: run.loop_rate(patch) for patch in run.answers})
    assert rates == pytest.approx({patch: run.loop_rate(patch) for patch in run.answers})


def test_the_intervals_are_wilsons(run: Run) -> None:
    loops, answers = (
        f"sum by (patch) ({metric})" for metric in ("vllm_surgery_loops_total", "vllm_surgery_requests_total")
    )
    lower = run.prometheus.by("patch", queries.wilson(loops, answers, "lower"))
    upper = run.prometheus.by("patch", queries.wilson(loops, answers, "upper"))
    for patch, tokens in run.answers.items():
        expected = wilson(min(run.loops(patch).total(), len(tokens)), len(tokens))
        assert (lower[patch], upper[patch]) == pytest.approx((expected.low, expected.high), abs=1e-4)


def test_every_query_of_every_panel_has_an_answer(run: Run) -> None:
    seconds = time.monotonic() - run.started
    asked = [(place, as_sent(text)) for place, text, _ in generate.queries_of(dashboard())]
    assert {place for place, text in asked if not run.prometheus.ask_range(text, seconds)} == OF_OTHER_SERVERS
    numbers = [
        (place, float(value))
        for place, text in asked
        for series in run.prometheus.ask(text)
        for value in series["value"][1:]
    ]
    assert [place for place, value in numbers if math.isnan(value)] == []
    assert [place for place, value in numbers if value < 0 and not place.startswith(SIGNED)] == []


def test_every_variable_has_values(run: Run) -> None:
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            selector, label = (
                as_sent(variable["definition"]).removeprefix("label_values(").removesuffix(")").rsplit(", ", 1)
            )
            assert run.prometheus.ask(f"group by ({label}) ({selector})"), variable["name"]


def test_every_rule_has_an_answer_or_is_rightly_empty(run: Run) -> None:
    rules = {f"rule {record.name}": record.expression for record in recording.RECORDS}
    rules |= {f"rule {alert.name}": alert.expression for alert in ALERTS}
    assert {place for place, text in rules.items() if not run.prometheus.ask(text)} == RIGHTLY_EMPTY


def test_every_metric_that_rules_ask_for_is_there(run: Run) -> None:
    asked = {
        selector.metric
        for expression in [
            *(record.expression for record in recording.RECORDS),
            *(alert.expression for alert in ALERTS),
        ]
        for selector in read(expression).selectors
    }
    assert {metric for metric in asked if not run.prometheus.ask(metric)} == NEVER_MADE


def test_the_one_alert_says_that_a_swap_by_hand_isnt_what_the_file_asks_for(run: Run) -> None:
    alerts = run.prometheus.ask("ALERTS")
    (patched,) = run.answers.keys() - {"none"}
    assert [(each["metric"]["alertname"], each["metric"]["patch"]) for each in alerts] == [(NOT_DESIRED.name, patched)]


def test_the_swap_is_annotated_once(run: Run) -> None:
    (annotation,) = dashboard()["annotations"]["list"]
    shown = run.prometheus.ask_range(as_sent(annotation["expr"]), time.monotonic() - run.started)
    assert "none" in {series["metric"]["patch"] for series in shown}
