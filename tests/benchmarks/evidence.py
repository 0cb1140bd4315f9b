# SPDX-License-Identifier: Apache-2.0
"""What a patch does to a model, measured: serves the model as `make serve` does and runs `vllm-surgery evaluate` on it.

    python -m tests.benchmarks.evidence --model DIR --patch FILE --out DIR [--seconds N] [options of evaluate]

A trial that ran out of its seconds goes on with the same command.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.engine.server import COMMAND, running_server

SERVED = ("--served-model-name", "smollm2", "--dtype", "float32", "--max-model-len", "4096", "--enforce-eager")
KV_CACHE = ("--kv-cache-memory-bytes", "1073741824")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.evidence", description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--seconds", type=float, help="stop asking after so long")
    args, rest = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as work, running_server(Path(work), args.model, *SERVED, *KV_CACHE) as server:
        command = [COMMAND, "evaluate", "--url", server.url, "--model", args.model, "--protocol", "small", *rest]
        with subprocess.Popen(command) as asking:
            try:
                return asking.wait(args.seconds)
            except subprocess.TimeoutExpired:
                asking.terminate()
                return asking.wait()


if __name__ == "__main__":
    sys.exit(main())
