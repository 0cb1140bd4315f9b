# SPDX-License-Identifier: Apache-2.0
"""The compose file's server, Prometheus and Alertmanager, with answers that loop until an alert is in Alertmanager.

Rules, intervals and thresholds are those that are shipped, so it takes a quarter of an hour. What differs from
`docker compose up` stands in `override`: the network is this machine's, and the demo model is one that is there.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import yaml

from deploy.containers.images import ALERTMANAGER, IMAGE, PROMETHEUS
from deploy.containers.podman import DEPLOY, ContainerError, ask, require, run, say, until
from deploy.monitoring.alerts import ENOUGH, LOOP_RATE_HIGH

if TYPE_CHECKING:
    from collections.abc import Iterator

FILE = DEPLOY / "compose.yaml"
SERVICES = ("vllm", "prometheus", "alertmanager")
"""Grafana is in no Debian package."""

SERVER, PROMETHEUS_URL, ALERTMANAGER_URL = (f"http://127.0.0.1:{port}" for port in (8000, 9090, 9093))
READY_SECONDS = 1200.0
FIRES_SECONDS = 1800.0
"""The alert has to hold for ten minutes, of rules that are evaluated once in one."""

LOOPING = "Monday, Monday, Monday, Monday, Monday, Monday, Monday, Monday,"
"""What the demo model goes on with to the end."""

TOKENS, AT_ONCE = 192, 16


def try_compose(model: Path) -> None:
    """Starts them, lets answers loop, and waits for the alert.

    Raises:
        ContainerError: something is not as it should be.
    """
    with running(model):
        until(READY_SECONDS, "the server is ready", lambda: ask(f"{SERVER}/v1/surgery") is not None)
        say(f"the server is ready, with {ask(f'{SERVER}/v1/surgery')['active']}")
        until(120, "Prometheus scrapes it", lambda: values('up{job="vllm"}') == [1.0])
        loop(1)  # A rate sees nothing of what a counter begins with.
        until(120, "Prometheus has its counters", lambda: sum(values("vllm_surgery_requests_total")) > 0)
        loop(ENOUGH + 10)
        say(
            f"{ENOUGH + 11} answers have looped; {LOOP_RATE_HIGH.name} holds for {LOOP_RATE_HIGH.holds} before it fires"
        )
        until(FIRES_SECONDS, f"{LOOP_RATE_HIGH.name} is in Alertmanager", lambda: LOOP_RATE_HIGH.name in alerts())
        say(f"Alertmanager has it: {alerts()[LOOP_RATE_HIGH.name]}")
        require(set(alerts()) == {LOOP_RATE_HIGH.name}, f"other alerts fire too: {sorted(alerts())}")


@contextmanager
def running(model: Path) -> Iterator[None]:
    """The three services, whose containers and volumes are removed in the end."""
    with tempfile.TemporaryDirectory() as work:
        more = Path(work) / "override.yaml"
        more.write_text(yaml.safe_dump(override(model)))
        os.environ |= {"PROMETHEUS_IMAGE": PROMETHEUS, "ALERTMANAGER_IMAGE": ALERTMANAGER}
        compose = ("podman-compose", "--file", str(FILE), "--file", str(more))
        run(*compose, "up", "--detach", *SERVICES)
        try:
            yield
        except ContainerError:
            for service in SERVICES:
                print(run(*compose, "logs", service, capture=True, check=False).stdout[-4000:], file=sys.stderr)
            raise
        finally:
            began = time.monotonic()
            run(*compose, "down", "--volumes", capture=True, check=False)
            say(f"all ended in {time.monotonic() - began:.0f} s")


def override(model: Path) -> dict[str, Any]:
    """What is otherwise than in the compose file, as a second one."""
    here: dict[str, Any] = {"network_mode": "host", "ports": []}
    names = {name: {**here, "extra_hosts": [f"{other}:127.0.0.1" for other in SERVICES]} for name in SERVICES}
    made = {"image": IMAGE, "volumes": [f"{model}:/models/smollm2:ro"]}
    return {
        "services": {
            "demo-model": {"network_mode": "host", **made},
            **names,
            # Without systemd nobody asks podman's health checks.
            "vllm": {**names["vllm"], **made, "healthcheck": {"disable": True}},
        }
    }


def loop(number: int) -> None:
    """Answers so many requests, each of which loops."""
    body = {"model": "smollm2", "prompt": LOOPING, "max_tokens": TOKENS, "temperature": 0}
    with ThreadPoolExecutor(AT_ONCE) as threads:
        for told in threads.map(lambda _: ask(f"{SERVER}/v1/completions", body, seconds=1200), range(number)):
            require(told is not None, "the server doesn't answer")


def values(expression: str) -> list[float]:
    """What Prometheus says of an expression."""
    told = ask(f"{PROMETHEUS_URL}/api/v1/query?query={quote(expression)}")
    return [float(series["value"][1]) for series in told["data"]["result"]] if told else []


def alerts() -> dict[str, str]:
    """The alerts that have reached Alertmanager, with their summaries."""
    told = ask(f"{ALERTMANAGER_URL}/api/v2/alerts") or []
    return {alert["labels"]["alertname"]: alert["annotations"]["summary"] for alert in told}
