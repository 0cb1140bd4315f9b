# SPDX-License-Identifier: Apache-2.0
"""Prometheus and its tool, where they are installed."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="needs Prometheus: `make system-packages` installs Debian's where it can",
)


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs promtool; its words are in ``stdout``."""
    return subprocess.run(
        ["promtool", *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
