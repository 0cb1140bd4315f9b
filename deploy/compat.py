#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs the whole-server tests on other versions of vLLM, each in an environment of its own.

    python3 deploy/compat.py --engine cpu --demo-model DIR 0.31.0 0.30.0

Prints a Markdown table of what each version offers, from `vllm-surgery doctor --json` and from the tests. Exit code 1:
a test failed. Needs nothing but Python and its pip.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = {
    "load": ["tests/engine/test_server.py"],
    "swap, routes, metrics": ["tests/engine/test_live.py"],
    "watched files": ["tests/engine/test_watch.py"],
}
"""What is served, and the test files that show it on real servers."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Test vllm-surgery on other versions of vLLM.")
    parser.add_argument("versions", nargs="+", metavar="X.Y.Z")
    parser.add_argument("--engine", default="auto", choices=["auto", "gpu", "cpu"])
    parser.add_argument("--demo-model", type=Path, required=True, help="the demo model's folder")
    parser.add_argument("--venvs", type=Path, default=ROOT, help="where environments are made (default: the checkout)")
    options = parser.parse_args()
    rows = [examine(version, options) for version in options.versions]
    for cells in [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]:
        print(f"| {' | '.join(cells)} |")
    return int(any("FAIL" in row.values() for row in rows))


def examine(version: str, options: argparse.Namespace) -> dict[str, str]:
    """One row of the table, by its columns."""
    venv = options.venvs.resolve() / f".venv-{version}"
    command = ["--venv", str(venv), "--engine", options.engine, "--engine-version", version, "--extra", "test"]
    subprocess.run([sys.executable, str(ROOT / "deploy" / "install.py"), *command], check=True, stdout=sys.stderr)
    doctor = subprocess.run(
        [str(venv / "bin" / "vllm-surgery"), "doctor", "--json"], stdout=subprocess.PIPE, check=False
    )
    offers = {name: "yes" if there else "no" for name, there in json.loads(doctor.stdout)["offers"].items()}
    return {
        "vLLM": version,
        **offers,
        **{f"tests: {name}": test(venv, files, options) for name, files in TESTS.items()},
    }


def test(venv: Path, files: list[str], options: argparse.Namespace) -> str:
    """Whether tests pass in an environment."""
    environment = {**os.environ, "VLLM_SURGERY_DEMO_MODEL": str(options.demo_model.resolve())}
    command = [str(venv / "bin" / "python"), "-m", "pytest", "-q", *files]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=sys.stderr, check=False)
    return "pass" if done.returncode == 0 else "FAIL"


if __name__ == "__main__":
    sys.exit(main())
