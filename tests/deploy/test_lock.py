# SPDX-License-Identifier: Apache-2.0
"""Packages by the hashes of their files, with pip itself and a folder of wheels in the place of an index."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from deploy import lock

ROOT = Path(__file__).parents[2]
LINE = re.compile(r"[a-z0-9.-]+==\S+ --hash=sha256:[0-9a-f]{64}")
SHIPPED = sorted((ROOT / "deploy" / "docker").glob("*.lock"))


def make_wheel(folder: Path, name: str, version: str = "1.0", requires: str = "") -> Path:
    """The smallest wheel that pip installs."""
    info = f"{name}-{version}.dist-info"
    file = folder / f"{name}-{version}-py3-none-any.whl"
    needs = f"Requires-Dist: {requires}\n" if requires else ""
    with zipfile.ZipFile(file, "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return file


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All files that pip can have."""
    folder = tmp_path_factory.mktemp("wheels")
    for name in ("alpha", "editables"):
        make_wheel(folder, name)
    make_wheel(folder, "hatchling", requires="alpha>=0.5")
    make_wheel(folder, "alpha", "2.0")
    return folder


@pytest.fixture(autouse=True)
def no_index(monkeypatch: pytest.MonkeyPatch, wheels: Path) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> Path:
    folder = tmp_path_factory.mktemp("locked") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip(folder, "install", "--no-index", "--no-deps", str(wheels / "alpha-1.0-py3-none-any.whl"))
    pip(folder, "uninstall", "--yes", "setuptools")
    return folder


def pip(venv: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(venv / "bin" / "pip"), *words], capture_output=True, text=True, check=False)


def test_what_is_installed_is_written_with_its_hash_and_so_is_what_builds(venv: Path, wheels: Path) -> None:
    lines = lock.lock(venv, [])
    assert re.fullmatch(r"# Made by deploy/lock\.py for Python 3\.\d+, \S+\.", lines[0])
    alpha, editables, hatchling = (
        f"{pin} --hash=sha256:{digest(wheels / file)}"
        for pin, file in [
            ("alpha==1.0", "alpha-1.0-py3-none-any.whl"),
            ("editables==1.0", "editables-1.0-py3-none-any.whl"),
            ("hatchling==1.0", "hatchling-1.0-py3-none-any.whl"),
        ]
    )
    assert lines[1:] == [alpha, editables, hatchling], "alpha as it is installed, though there is a newer one"
    assert lock.lock(venv, ["Alpha"])[1:] == [alpha]


def test_pip_takes_those_files_and_no_others(venv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "some.lock"
    file.write_text("\n".join(lock.lock(venv, ["alpha"])))
    again = ("install", "--force-reinstall", "--require-hashes", "--no-deps", "--requirement", str(file))
    assert pip(venv, *again).returncode == 0
    other = tmp_path / "other"
    other.mkdir()
    make_wheel(other, "alpha", requires="something-else")
    monkeypatch.setenv("PIP_FIND_LINKS", str(other))
    refused = pip(venv, *again)
    assert refused.returncode != 0
    assert "DO NOT MATCH THE HASHES" in refused.stderr


def test_what_can_go_wrong_is_said(
    venv: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(lock.LockError, match=rf"^{re.escape(str(venv))} has no beta, gamma$"):
        lock.lock(venv, ["gamma", "beta"])
    told: dict[str, Any] = {
        "metadata": {"name": "Beta", "version": "1"},
        "download_info": {"url": "https://x/beta-1.tar.gz"},
    }
    with pytest.raises(lock.LockError, match=r"^Beta 1 has no wheel for this Python: "):
        lock._file(told)
    told["download_info"] = {"url": "https://x/beta-1-py3-none-any.whl", "archive_info": {}}
    with pytest.raises(lock.LockError, match=r"^Beta 1: pip doesn't say the file's hash"):
        lock._file(told)
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    monkeypatch.setattr(sys, "argv", ["lock.py", "--venv", str(venv)])
    assert lock.main() == 1
    assert "[lock] error: pip doesn't find all files; its own words are above" in capfd.readouterr().err


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_files_have_a_hash_for_all_that_is_pure_python(file: Path) -> None:
    first, *lines = file.read_text().splitlines()
    assert first.endswith("Each is pure Python: one file for all platforms.")
    assert lines
    assert all(LINE.fullmatch(line) for line in lines)


def test_images_install_nothing_without_hashes() -> None:
    for name in ("cpu", "gpu"):
        text = (ROOT / "deploy" / "docker" / f"{name}.Dockerfile").read_text()
        for command in re.findall(r"-m pip (?:install|wheel) .+", text):
            hashed = "--require-hashes --no-deps" in command
            assert hashed or "--no-index" in command or "--no-deps --no-build-isolation" in command, command
    cpu = (ROOT / "deploy" / "docker" / "cpu.Dockerfile").read_text()
    assert "$(if [ -f deploy/docker/cpu.lock ]; then echo --lock deploy/docker/cpu.lock; fi)" in cpu
    assert "-m pip" not in cpu, "it leaves that to install.py"
