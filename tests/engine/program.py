# SPDX-License-Identifier: Apache-2.0
"""A part of the tests as a program of its own, whose engines live in its process and end with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",  # Numba's threads spin too once there are any: vLLM finds n-grams by it.
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
"""One thread, since spinning threads of two processes starve each other; nothing from outside."""


def run_program(*words: str, given: Any, **environment: str) -> tuple[bytes, str]:
    """What a program wrote to the file that its last argument names, and its log.

    Args:
        words: what Python is asked to run.
        given: what it reads as JSON on stdin.
        environment: on top of `ENVIRONMENT`.
    """
    with tempfile.TemporaryDirectory() as work:
        out = Path(work) / "out"
        done = subprocess.run(
            [sys.executable, *words, str(out)],
            input=json.dumps(given),
            env={**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", **ENVIRONMENT, **environment},
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise AssertionError(f"the engine process ended with {done.returncode}:\n{done.stdout[-6000:]}")
        return out.read_bytes(), done.stdout
