#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes an environment with a vLLM that has no build for CPUs yet: its Python files over another's compiled parts.

    python3 deploy/overlay.py --base .venv --venv .venv-0.33.0 0.33.0

The wheel for GPUs is downloaded, and only its Python files and data are kept. All else is the base environment's, which
`deploy/install.py --engine cpu` has made: torch, the compiled parts, and every package but those that the new Python
files can't be imported without. What runs so is the new vLLM's Python on an older one's kernels: it shows whether the
plugin fits, and nothing about the new kernels. Needs nothing but Python and its pip.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMPILED = ".so"
LEFT_OUT = frozenset({COMPILED, ".h", ".hpp", ".cuh", ".cu", ".cpp", ".inl", ".jpg", ""})
"""Endings of what isn't taken from the wheel: compiled parts, and sources of kernels for GPUs."""
IMPORTED = (
    "vllm.entrypoints.cli.serve",
    "vllm.entrypoints.llm",
    "vllm.entrypoints.openai.api_server",
    "vllm.v1.worker.cpu_worker",
)
"""What a server imports, and with it all packages that it needs."""
MOST_PACKAGES = 8
"""New ones, before something else is taken to be wrong."""

_MISSING = re.compile(r"ModuleNotFoundError: No module named '([A-Za-z0-9_]+)'")


class OverlayError(Exception):
    """Something that keeps the environment from being made; the text says what."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version", metavar="X.Y.Z", help="of vLLM")
    parser.add_argument("--base", type=Path, required=True, help="an environment with a vLLM for CPUs")
    parser.add_argument("--venv", type=Path, required=True, help="where the new environment is made")
    options = parser.parse_args()
    try:
        overlay(options.version, options.base.resolve(), options.venv.resolve())
    except (OverlayError, OSError, subprocess.CalledProcessError, zipfile.BadZipFile) as error:
        print(f"[overlay] error: {error}", file=sys.stderr)
        return 1
    return 0


def overlay(version: str, base: Path, venv: Path) -> None:
    """Makes `venv` with this version of vLLM over what `base` has."""
    below = packages_of(base)
    if not (below / "vllm").is_dir():
        raise OverlayError(f"{base} has no vLLM")
    subprocess.run([str(base / "bin" / "python"), "-m", "venv", "--clear", str(venv)], check=True)
    here = packages_of(venv)
    (here / "vllm_surgery_base.pth").write_text(f"{below}\n")
    say(f"downloading vllm=={version} (several hundred MB), of which the Python files are kept")
    with tempfile.TemporaryDirectory(dir=venv) as folder:
        pip(base, "download", "--quiet", "--no-deps", "--dest", folder, f"vllm=={version}")
        (wheel,) = Path(folder).glob("*.whl")
        take_python(wheel, here)
    say_for_cpus(version, here)
    take_compiled(below / "vllm", here / "vllm")
    pip(venv, "install", "--quiet", "--no-deps", "--editable", str(ROOT))
    add_missing(venv)


def take_python(wheel: Path, packages: Path) -> None:
    """Unpacks the package in a wheel, without what `LEFT_OUT` names. Its metadata stays behind: it asks for GPUs."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith("vllm/")]
        archive.extractall(packages, [name for name in names if Path(name).suffix not in LEFT_OUT])


def say_for_cpus(version: str, packages: Path) -> None:
    """Says that this vLLM is one for CPUs, as those that are built for them do: vLLM takes its platform from that."""
    metadata = packages / f"vllm-{version}+cpu.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")


def take_compiled(source: Path, target: Path) -> None:
    """Copies compiled parts to where the new Python files look for them."""
    for path in source.rglob(f"*{COMPILED}"):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, place)


def add_missing(venv: Path) -> None:
    """Installs packages that the new Python files can't be imported without, one after the other."""
    for _ in range(MOST_PACKAGES):
        command = [str(venv / "bin" / "python"), "-c", f"import {', '.join(IMPORTED)}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        last = done.stderr.strip().splitlines()[-1]
        missing = _MISSING.search(last)
        if missing is None:
            raise OverlayError(f"its Python files don't import over these compiled parts: {last}")
        say(f"installing {missing[1]}, which is new")
        pip(venv, "install", "--quiet", "--no-deps", missing[1])
    raise OverlayError(f"more than {MOST_PACKAGES} packages are new")


def packages_of(venv: Path) -> Path:
    """Folder of an environment that packages are installed in."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    found = subprocess.run([str(venv / "bin" / "python"), "-c", code], capture_output=True, text=True, check=True)
    return Path(found.stdout.strip())


def pip(venv: Path, *arguments: str) -> None:
    command = [str(venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", *arguments]
    if subprocess.run(command, stdout=sys.stderr, check=False).returncode != 0:
        raise OverlayError(f"`pip {' '.join(arguments[:2])} …` failed; its own words are above")


def say(text: str) -> None:
    print(f"[overlay] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
