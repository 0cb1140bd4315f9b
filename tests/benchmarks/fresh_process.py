# SPDX-License-Identifier: Apache-2.0
"""A benchmark's work in a process of its own, so that no run sees what another left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
"""Nothing from outside, and everything in one process on one thread: the same figures however busy the machine is."""


def run_fresh(module: str, data: dict[str, Any]) -> Any:
    """Runs `module` as a program and gives what it made. Its progress goes to stderr.

    Args:
        module: takes JSON on stdin, and writes JSON to the file that its argument names.
        data: for its stdin.

    Raises:
        subprocess.CalledProcessError: it failed; the reason is on stderr.
    """
    with tempfile.TemporaryDirectory() as work:
        out = Path(work) / "out.json"
        subprocess.run(
            [sys.executable, "-m", module, str(out)],
            input=json.dumps(data),
            cwd=Path(__file__).parents[2],
            env={**os.environ, **ENVIRONMENT},
            stdout=sys.stderr,
            text=True,
            check=True,
        )
        return json.loads(out.read_text())
