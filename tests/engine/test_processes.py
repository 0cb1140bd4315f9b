# SPDX-License-Identifier: Apache-2.0
"""A program that is a copy of a process with vLLM imported is as one that was started anew, only sooner."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.engine import processes
from tests.engine.processes import COMMAND, SPAWNED, Copy, environment, kill, start

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.engine

TELL = """
import json, os, sys
print(json.dumps([sys.argv, os.environ["ASKED"], os.getcwd(), sys.stdin.read(), os.getpid() == os.getsid(0), __name__]))
print("err", file=sys.stderr)
sys.exit(3)
"""
LATE = "VLLM_SURGERY_DISABLE"
WAIT = "import time; print('here', flush=True); time.sleep(3600)"


def run(folder: Path, *words: str, separate: bool = True, **more: str) -> tuple[bool, int, str, str]:
    """Whether it was a copy, its exit code, and what it wrote; without what Triton's library says of a copy's end."""
    out, err, given = (folder / name for name in ("out", "err", "given"))
    given.write_text("asked")
    process = start([*words], environment(**more), out=out, err=err if separate else None, given=given)
    code = process.wait()
    said = [file.read_text().partition("nanobind: leaked")[0] for file in (out, err)]
    return isinstance(process, Copy), code, said[0], said[1] if separate else ""


def test_a_copy_is_as_a_program_started_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = TELL.replace("ASKED", LATE)
    copied, *copy = run(tmp_path, "-c", program, "word", **{LATE: "1"})
    monkeypatch.setattr(processes, "_begun", {})
    anew_copied, *anew = run(tmp_path, "-c", program, "word", **{LATE: "1"})
    assert (copied, anew_copied) == (True, False)
    assert copy == anew
    assert copy[0] == 3
    assert json.loads(copy[1])[:2] == [["-c", "word"], "1"]


def test_a_copy_of_the_command_is_the_command(tmp_path: Path) -> None:
    assert run(tmp_path, COMMAND, "check", str(tmp_path / "none.yaml")) == (True, 2, "", _refusal(tmp_path))
    copied, code, out, _ = run(tmp_path, COMMAND, "check", str(tmp_path / "none.yaml"), separate=False)
    assert (copied, code, out) == (True, 2, _refusal(tmp_path))


def _refusal(folder: Path) -> str:
    return f"vllm-surgery: error: {folder / 'none.yaml'}: no such file\n"


@pytest.mark.parametrize("more", [{"VLLM_LOGGING_LEVEL": "DEBUG"}, {"PYTHONPATH": "elsewhere"}])
def test_what_is_read_while_vllm_is_imported_is_read_anew(tmp_path: Path, more: dict[str, Any]) -> None:
    (name,) = more
    copied, _, out, _ = run(tmp_path, "-c", TELL.replace("ASKED", name), **more)
    assert (copied, json.loads(out)[1]) == (False, more[name])


def test_what_the_copies_lack_is_not_there_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(tmp_path, "-c", "")[0]
    monkeypatch.delenv("PATH")
    assert not run(tmp_path, "-c", "")[0]


HOW_ENGINES_START = "from vllm.v1.engine.utils import get_mp_context as context; print(context().get_start_method())"


@pytest.mark.parametrize(("more", "method"), [({}, "fork"), ({SPAWNED: "spawn"}, "spawn")], ids=["by default", "asked"])
def test_engines_of_a_copy_are_copies_unless_they_are_to_be_started_anew(
    tmp_path: Path, more: dict[str, str], method: str
) -> None:
    assert run(tmp_path, "-c", HOW_ENGINES_START, **more)[:3] == (True, 0, f"{method}\n")


def test_a_copy_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    process = start(["-c", f"import os; os.fork(); {WAIT}"], environment(), out=tmp_path / "out")
    assert process.poll() is None
    kill(process)
    assert process.wait() == process.poll() == -signal.SIGKILL
    kill(process)
    process.terminate()
