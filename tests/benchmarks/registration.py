# SPDX-License-Identifier: Apache-2.0
"""What the plugin costs a vLLM process that was asked for no patch: the call of its entry point, in a fresh process.

As a program it takes a module's name, imports it, calls the entry point and prints a `Registration` as JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.benchmarks.fresh_process import ENVIRONMENT

PROCESSES = {
    "any process (has vllm.engine.arg_utils)": "vllm.engine.arg_utils",
    "API server": "vllm.entrypoints.openai.api_server",
    "engine and worker": "vllm.v1.worker.gpu_worker",
}
"""Kinds of processes, and a module that each has imported whether the plugin is there or not."""


@dataclass(frozen=True)
class Registration:
    """What one call took.

    Attributes:
        before_seconds: the imports that the process does anyway.
        seconds: the call.
        before_bytes: peak resident set before the call.
        added_bytes: by how much the call raised it.
        added_modules: how many modules it imported.
    """

    before_seconds: float
    seconds: float
    before_bytes: int
    added_bytes: int
    added_modules: int


def register_once(module: str) -> Registration:
    """Imports `module`, then registers the plugin, in a fresh process.

    Raises:
        subprocess.CalledProcessError: it failed; the reason is on stderr.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.registration", module],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Registration(**json.loads(done.stdout.splitlines()[-1]))


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts it in KiB.


def _register_here(module: str) -> Registration:
    started = time.perf_counter()
    importlib.import_module(module)
    imported, before_bytes, modules = time.perf_counter(), _peak_bytes(), len(sys.modules)
    from vllm_surgery.engine.plugin import register

    register()
    ended = time.perf_counter()
    return Registration(
        imported - started, ended - imported, before_bytes, _peak_bytes() - before_bytes, len(sys.modules) - modules
    )


if __name__ == "__main__":
    print(json.dumps(asdict(_register_here(sys.argv[1]))))
