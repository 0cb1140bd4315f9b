# SPDX-License-Identifier: Apache-2.0
"""Prometheus and its tool, where they are installed."""

from __future__ import annotations

import math
import shutil
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from deploy.demo.programs import running
from deploy.demo.prometheus import command
from tests.engine.server import free_port
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="needs Prometheus: `make system-packages` installs Debian's where it can",
)

SECONDS = 1
"""Between two scrapes, and two evaluations of every rule."""


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs promtool; its words are in ``stdout``."""
    return subprocess.run(
        ["promtool", *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )


@dataclass(frozen=True)
class Prometheus:
    """A Prometheus that answers.

    Attributes:
        url: without a path.
    """

    url: str

    def ask(self, expression: str) -> list[dict[str, Any]]:
        """What an expression is now: ``metric`` and ``value`` of each series."""
        return self._get("query", query=expression)

    def ask_range(self, expression: str, seconds: float) -> list[dict[str, Any]]:
        """What an expression was: ``metric`` and ``values`` of each series."""
        now = time.time()
        return self._get("query_range", query=expression, start=now - seconds, end=now, step=SECONDS)

    def by(self, label: str, expression: str) -> dict[str, float]:
        """The values of an expression that has one series for each value of `label`."""
        return {series["metric"][label]: float(series["value"][1]) for series in self.ask(expression)}

    def wait_for(self, expression: str, reached: Callable[[list[float]], object] = bool) -> None:
        """Asks until the values of an expression are as they should be."""
        until(lambda: [float(series["value"][1]) for series in self.ask(expression)], reached, every=SECONDS / 4)

    def wait_for_rules(self) -> None:
        """Waits until every rule was evaluated from now on."""
        now = time.time()
        until(self._evaluated, lambda moments: min(moments) > now, every=SECONDS / 4)

    def _evaluated(self) -> list[float]:
        """When each rule was evaluated last, in seconds since 1970; 0 where it never was."""
        groups = httpx.get(f"{self.url}/api/v1/rules", timeout=None).raise_for_status().json()["data"]["groups"]
        moments = [rule["lastEvaluation"] for group in groups for rule in group["rules"]]
        return [datetime.fromisoformat(moment).timestamp() for moment in moments]

    def _get(self, path: str, **parameters: Any) -> list[dict[str, Any]]:
        answer = httpx.post(f"{self.url}/api/v1/{path}", data=parameters, timeout=None)
        assert answer.is_success, f"{parameters['query']}: {answer.text}"
        result: list[dict[str, Any]] = answer.json()["data"]["result"]
        return result


@contextmanager
def running_prometheus(folder: Path, target: str) -> Iterator[Prometheus]:
    """A Prometheus with this project's configuration and rules, only quicker, that scrapes `target`."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with running(command(folder, target, port, SECONDS), folder / "prometheus.log", f"{url}/-/ready", math.inf):
        yield Prometheus(url)
