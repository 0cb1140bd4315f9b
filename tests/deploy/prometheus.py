# SPDX-License-Identifier: Apache-2.0
"""Prometheus and its tool, where they are installed."""

from __future__ import annotations

import shutil
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml

from deploy.monitoring.files import DEPLOY
from deploy.monitoring.generate import RULES
from tests.engine.server import free_port

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

    def wait_for(self, expression: str, reached: Callable[[list[float]], bool], seconds: float = 30) -> None:
        """Asks until the values of an expression are as they should be."""
        deadline = time.monotonic() + seconds
        while not reached(values := [float(series["value"][1]) for series in self.ask(expression)]):
            assert time.monotonic() < deadline, f"{expression} is {values}"
            time.sleep(SECONDS / 4)

    def _get(self, path: str, **parameters: Any) -> list[dict[str, Any]]:
        answer = httpx.post(f"{self.url}/api/v1/{path}", data=parameters, timeout=30)
        assert answer.is_success, f"{parameters['query']}: {answer.text}"
        result: list[dict[str, Any]] = answer.json()["data"]["result"]
        return result


@contextmanager
def running_prometheus(folder: Path, target: str) -> Iterator[Prometheus]:
    """A Prometheus with this project's configuration and rules, only quicker, that scrapes `target`."""
    port = free_port()
    config = _quicker(folder, target)
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            [*command, f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        prometheus = Prometheus(f"http://127.0.0.1:{port}")
        _await_ready(prometheus, process, folder / "prometheus.log")
        yield prometheus
    finally:
        process.terminate()
        process.wait(30)


def _quicker(folder: Path, target: str) -> Path:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": f"{SECONDS}s", "evaluation_interval": f"{SECONDS}s"}
    config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
    (folder / "rules").mkdir()
    for path in RULES.values():
        rules = yaml.safe_load((DEPLOY / path).read_text())
        for group in rules["groups"]:
            group["interval"] = f"{SECONDS}s"
        (folder / path.removeprefix("prometheus/")).write_text(yaml.safe_dump(rules))
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    return file


def _await_ready(prometheus: Prometheus, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            if httpx.get(f"{prometheus.url}/-/ready", timeout=2).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"Prometheus was not ready in time:\n{log.read_text()}")
