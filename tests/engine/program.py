# SPDX-License-Identifier: Apache-2.0
"""A part of the tests as a program of its own, whose engines live in its process and end with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",  # Numba's threads spin too once there are any: vLLM finds n-grams by it.
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    **dict.fromkeys(("VLLM_ENGINE_READY_TIMEOUT_S", "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS"), "86400"),
}
"""One thread, since spinning threads of two processes starve each other; nothing from outside; vLLM waits for its own
processes as long as they need."""


@dataclass(frozen=True)
class Ended:
    """A program that has ended.

    Attributes:
        written: what is in the file that its last argument named.
        log: everything that it said.
        code: its exit code; the negative number of the signal that ended it.
    """

    written: bytes
    log: str
    code: int

    @property
    def failure(self) -> str:
        """How it ended, with its last words."""
        return f"the engine process ended with {self.code}:\n{self.log[-6000:]}"


def run_program(*words: str, given: Any, **environment: str) -> tuple[bytes, str]:
    """What a program wrote to the file that its last argument names, and its log. The arguments are those of `ended`."""
    done = ended(*words, given=given, **environment)
    assert done.code == 0, done.failure
    return done.written, done.log


def ended(*words: str, given: Any, **environment: str) -> Ended:
    """Runs a program to its end.

    Args:
        words: what Python is asked to run; the name of a file that it may write is added.
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
        return Ended(out.read_bytes() if out.exists() else b"", done.stdout, done.returncode)
