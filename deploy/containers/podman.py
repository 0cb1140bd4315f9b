# SPDX-License-Identifier: Apache-2.0
"""Programs that make and run containers, with what they need around them."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Callable

DEPLOY = Path(__file__).resolve().parents[1]
ROOT = DEPLOY.parent

ENVIRONMENT = {
    "STORAGE_DRIVER": "vfs",
    "BUILDAH_ISOLATION": "chroot",
    "CONTAINERS_CONF": str(Path(__file__).with_name("containers.conf")),
}
"""What works without overlay file systems, user namespaces and systemd."""


class ContainerError(Exception):
    """What did not go as it should."""


def say(text: str) -> None:
    print(f"[containers] {time.strftime('%H:%M:%S')} {text}", flush=True)


def run(*command: str, check: bool = True, capture: bool = False) -> subprocess.CompletedProcess[str]:
    """Runs a program, with what containers need around it."""
    environment = {**os.environ, **ENVIRONMENT}
    return subprocess.run(list(command), check=check, capture_output=capture, text=True, env=environment)


def until(seconds: float, what: str, reached: Callable[[], bool]) -> None:
    """Waits.

    Raises:
        ContainerError: it took too long.
    """
    deadline = time.monotonic() + seconds
    while not reached():
        require(time.monotonic() < deadline, f"after {seconds:.0f} s it can't be said that {what}")
        time.sleep(1)


def require(holds: bool, otherwise: str) -> None:
    """Sees that something holds.

    Raises:
        ContainerError: it doesn't.
    """
    if not holds:
        raise ContainerError(otherwise)


def ask(url: str, body: Any = None, *, seconds: float = 60) -> Any:
    """The JSON that a server answers, asked by GET, or by POST with a body; None where it can't be reached."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310 - this machine
    try:
        with urllib.request.urlopen(request, timeout=seconds) as said:  # noqa: S310 - this machine
            return json.load(said)
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return None


def load(file: Path) -> Any:
    """A YAML file."""
    return yaml.safe_load(file.read_text())
