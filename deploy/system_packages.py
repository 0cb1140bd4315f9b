#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Installs Debian's packages of the programs that some tests need, where this may be done: as root, where there is apt.

    python3 deploy/system_packages.py

It never fails: without a program, the tests that need it are skipped and say so. Services aren't started.
"""

from __future__ import annotations

import os
import shutil
import subprocess

PROGRAMS = {
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "kubectl": "kubernetes-client",
    "chromium": "chromium",
    "chromedriver": "chromium-driver",
}
"""Each with the package that brings it."""

SECONDS = 600
"""A mirror that takes longer than this doesn't answer."""


def say(text: str) -> None:
    print(f"[system-packages] {text}", flush=True)


def main() -> None:
    missing = sorted({package for program, package in PROGRAMS.items() if shutil.which(program) is None})
    if not missing:
        return
    if reason := why_not():
        say(f"{' and '.join(missing)} not installed, {reason}: tests that need them will be skipped")
        return
    say(f"installing {' and '.join(missing)}")
    failed = [package for package in missing if not install(package)]
    if failed:
        say(f"{' and '.join(failed)} can't be installed: tests that need them will be skipped")


def why_not() -> str | None:
    """Why nothing can be installed here; None where it can."""
    if os.geteuid() != 0:
        return "since only root may"
    return None if shutil.which("apt-get") else "since there is no apt"


def install(package: str) -> bool:
    """Installs a package from the lists that there are, and with new ones if those are too old."""
    command = ("install", "--yes", "--no-install-recommends", package)
    return apt(*command) or (apt("update") and apt(*command))


def apt(*arguments: str) -> bool:
    """Whether apt-get succeeded. Debian starts no service in run level 1."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    command = ["apt-get", "--quiet", "--quiet", *arguments]
    try:
        done = subprocess.run(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


if __name__ == "__main__":
    main()
