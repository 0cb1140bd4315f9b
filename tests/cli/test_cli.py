# SPDX-License-Identifier: Apache-2.0
"""The command line's manners: exit codes, streams, one-line errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.folders import config_of, mlp_tensors, write_folder
from vllm_surgery import __version__
from vllm_surgery.cli import main
from vllm_surgery.patch.format import json_schema

if TYPE_CHECKING:
    from pathlib import Path

WRONG = "version: 1\nname: wrong\nedits: [{op: zero, neurons: {3: []}}]\n"
REASON = "edits[0].neurons.3: names no units; give at least one index"


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    file = tmp_path / "wrong.yaml"
    file.write_text(WRONG)
    return file


def test_a_refused_patch_is_one_line_and_exit_code_1(wrong: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(wrong)]) == 1
    assert capsys.readouterr() == ("", f"vllm-surgery: error: {wrong}: {REASON}\n")


def test_a_refusal_as_json_goes_to_stdout(wrong: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(wrong), "--json"]) == 1
    out, err = capsys.readouterr()
    assert err == ""
    assert json.loads(out) == {
        "ok": False,
        "error": {
            "type": "PatchError",
            "message": f"{wrong}: {REASON}",
            "source": str(wrong),
            "place": "edits[0].neurons.3",
            "detail": "names no units; give at least one index",
        },
    }


@pytest.mark.parametrize("command", ["check", "show"])
def test_a_missing_file_is_exit_code_2(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "/nowhere.yaml"]) == 2
    assert capsys.readouterr() == ("", "vllm-surgery: error: /nowhere.yaml: no such file\n")


@pytest.mark.parametrize("arguments", [[], ["frobnicate"], ["check"], ["show", "a", "b"], ["check", "a", "--frob"]])
def test_wrong_usage_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: vllm-surgery")


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"vllm-surgery {__version__}\n")


def test_the_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json_schema()


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -m vllm_surgery schema | head -c 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "{", "")


def run(command: str, **environment: str) -> tuple[int, str, str]:
    """What a shell command ends with and says; ``vllm-surgery`` in it is this one."""
    command = command.replace("vllm-surgery", f"{sys.executable} -m vllm_surgery")
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_what_cannot_be_printed_is_one_line_and_exit_code_2() -> None:
    said = "vllm-surgery: error: can't print: No space left on device\n"
    assert run("vllm-surgery schema >/dev/full") == (2, "", said)


def test_an_error_keeps_its_exit_code_though_nobody_reads_it() -> None:
    assert run("vllm-surgery check nosuch.yaml --json | true") == (2, "", "")


def test_with_its_output_closed_a_command_does_its_work() -> None:
    assert run("vllm-surgery schema >&-") == (0, "", "")


def test_what_the_terminal_has_no_letters_for_is_spelled_out(tmp_path: Path) -> None:
    text = "version: 1\nname: n\ndescription: \u00e9\nedits: [{op: zero, neurons: {3: [1]}}]\n"
    (tmp_path / "n.yaml").write_text(text, encoding="utf-8")
    code, out, err = run(f"vllm-surgery show {tmp_path}/n.yaml", PYTHONIOENCODING="ascii")
    assert (code, err) == (0, "")
    assert "\\xe9" in out


def test_serve_without_vllm_says_what_to_install() -> None:
    code = (
        "import importlib.util, sys; find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'vllm' else find(name, *rest)\n"
        "from vllm_surgery.cli import main; sys.exit(main(['serve', 'model']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=False)
    said = "vllm-surgery: error: serve needs vLLM: install vllm-surgery with its extra `gpu` or `cpu`\n"
    assert (done.returncode, done.stderr) == (1, said)


@pytest.mark.parametrize(
    ("architecture", "command"),
    [
        ("\ud800", ["doctor"]),
        ("\x1b[31mRED\nline", ["doctor"]),
        ("\x1b[31mRED\nline", ["show", "PATCH"]),
        ("\x1b[31mRED\nline", ["check", "PATCH"]),
        ("\x1b[31mRED\nline", ["seal", "PATCH", "-o", "OUT"]),
    ],
)
def test_what_a_model_and_names_of_files_say_means_nothing_to_a_terminal(
    tmp_path: Path, architecture: str, command: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    config = {**config_of((6,)), "architectures": [architecture]}
    model = write_folder(tmp_path / "model\x1b[31m", mlp_tensors((6,)), config)
    patch = tmp_path / "patch\x1b[31m\udcff.yaml"
    patch.write_text("version: 1\nname: small\nedits: [{op: zero, neurons: {0: [1]}}]\n")
    words = {"PATCH": str(patch), "OUT": str(tmp_path / "out\x1b\udcff.yaml")}

    assert main([*(words.get(word, word) for word in command), "--model", str(model)]) == 0

    told = capfd.readouterr().out
    assert "\\x1b[31m" in told or "out\\x1b\\udcff" in told
    assert "\x1b" not in told
