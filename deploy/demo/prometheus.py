# SPDX-License-Identifier: Apache-2.0
"""Prometheus as deploy/prometheus/ has it, for a server on this machine and with shorter intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml

from deploy.monitoring.files import DEPLOY
from deploy.monitoring.generate import RULES

if TYPE_CHECKING:
    from pathlib import Path


def command(folder: Path, target: str, port: int, seconds: int) -> list[str]:
    """What starts a Prometheus.

    Args:
        folder: where its configuration is written, and its data.
        target: host and port of the server to scrape.
        port: where it answers, to this machine alone.
        seconds: between two scrapes, and between two evaluations of every rule.
    """
    return [
        "prometheus",
        f"--config.file={_write_config(folder, target, seconds)}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]


def _write_config(folder: Path, target: str, seconds: int) -> Path:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": f"{seconds}s", "evaluation_interval": f"{seconds}s"}
    config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
    del config["alerting"]  # Nobody is there to be told.
    (folder / "rules").mkdir()
    for path in RULES.values():
        rules = yaml.safe_load((DEPLOY / path).read_text())
        for group in rules["groups"]:
            group["interval"] = f"{seconds}s"
        (folder / path.removeprefix("prometheus/")).write_text(yaml.safe_dump(rules))
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    return file
