#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the packages of an environment with the hash of each one's file, for pip to take those files and no others.

    python3 deploy/lock.py --venv .venv > deploy/docker/cpu.lock
    python3 deploy/lock.py --venv .venv accelerate gguf > deploy/docker/gpu.lock

A version of a package is a set of files, and an index may come to offer another file for it; a hash can't be met by
another one. pip itself says which file it would take for each version, from wherever it is set up to look. With no
names given, all packages are written, vllm-surgery apart, and beside them what builds vllm-surgery itself.
Needs nothing but Python and the environment's pip.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from deploy.install import PYTORCH_CPU_INDEX, requirement_name, run_python

BUILDS = ("hatchling", "editables")
"""pyproject.toml's build backend, and what it asks for where a project is installed as it lies there."""

_OURS = frozenset({"vllm-surgery", "pip"})
_INSTALLED = """
import importlib.metadata as m
print("\\n".join(f"{d.name}=={d.version}" for d in m.distributions() if d.name))
"""
_PLATFORM = (
    "import sys, sysconfig; print(f'Python {sys.version_info[0]}.{sys.version_info[1]}, {sysconfig.get_platform()}')"
)


class LockError(Exception):
    """Why hashes can't be had."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Write an environment's packages with the hashes of their files.")
    parser.add_argument("--venv", type=Path, required=True, help="the environment")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these packages")
    options = parser.parse_args()
    try:
        print("\n".join(lock(options.venv, options.names)))
    except (LockError, OSError, subprocess.CalledProcessError) as error:
        print(f"[lock] error: {error}", file=sys.stderr)
        return 1
    return 0


def lock(venv: Path, names: list[str]) -> list[str]:
    """The lines of a requirements file with hashes.

    Args:
        venv: the environment whose versions they are.
        names: of packages; none for all, and what builds vllm-surgery.

    Raises:
        LockError: a package isn't installed, its file isn't to be had, or it would have to be built.
    """
    pins = installed(venv)
    wanted = {requirement_name(name) for name in names} or pins.keys()
    if missing := sorted(wanted - pins.keys()):
        raise LockError(f"{venv} has no {', '.join(missing)}")
    chosen = [pins[name] for name in sorted(wanted)]
    index, files = ask(venv, ["--no-deps", *chosen])
    if not names:
        files |= _builders(venv, chosen)
    lines = [f"{pin} --hash=sha256:{digest}" for pin, digest in sorted(files.items())]
    return [f"# Made by deploy/lock.py for {run_python(venv, _PLATFORM)}.", *index, *lines]


def installed(venv: Path) -> dict[str, str]:
    """What `venv` has, by normalised names: ``name==version``."""
    lines = run_python(venv, _INSTALLED).splitlines()
    return {name: line for line in lines if (name := requirement_name(line)) not in _OURS}


def _builders(venv: Path, pins: list[str]) -> dict[str, str]:
    """The build backend and what it needs, in the versions that are installed where they are."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.write("\n".join(pins))
        constraints.flush()
        return ask(venv, [*BUILDS, "--constraint", constraints.name])[1]


def ask(venv: Path, words: list[str]) -> tuple[list[str], dict[str, str]]:
    """Which files pip would install, of all that is asked for.

    Returns:
        The option by which PyTorch's own index is named, where only that has them; and each ``name==version`` with the
        SHA-256 of its file.

    Raises:
        LockError: there are no such files, or one is no wheel.
    """
    report = _report(venv, words)
    index = []
    if report is None:
        index = [f"--extra-index-url {PYTORCH_CPU_INDEX}"]
        report = _report(venv, ["--extra-index-url", PYTORCH_CPU_INDEX, *words])
    if report is None:
        raise LockError("pip doesn't find all files; its own words are above")
    return index, dict(map(_file, report["install"]))


def _file(entry: dict[str, Any]) -> tuple[str, str]:
    name, version = entry["metadata"]["name"], entry["metadata"]["version"]
    told = entry["download_info"]
    if not told["url"].endswith(".whl"):
        raise LockError(f"{name} {version} has no wheel for this Python: what building it fetches can't be locked")
    digest = told["archive_info"].get("hashes", {}).get("sha256")
    if digest is None:
        raise LockError(f"{name} {version}: pip doesn't say the file's hash; it takes pip 23 or newer")
    return f"{requirement_name(name)}=={version}", digest


def _report(venv: Path, words: list[str]) -> dict[str, Any] | None:
    """What pip would do, by its own report; None where it can't."""
    command = [str(venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    command += ["--dry-run", "--ignore-installed", "--report", "-", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    found: dict[str, Any] | None = json.loads(done.stdout) if done.returncode == 0 else None
    return found


if __name__ == "__main__":
    sys.exit(main())
