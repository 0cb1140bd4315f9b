# SPDX-License-Identifier: Apache-2.0
"""Checks of small tasks, and the process in which code is run."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from tests.waiting import until
from vllm_surgery.evaluation.probes import load_probes
from vllm_surgery.evaluation.tasks.checks import Check
from vllm_surgery.evaluation.tasks.sandbox import landlock_version, run_code

CHECKS: TypeAdapter[Check] = TypeAdapter(Check)


def right(check: dict[str, object], text: str, *, run: bool = False) -> bool:
    return CHECKS.validate_python(check).is_right(text, run=run)


@pytest.mark.parametrize(
    ("check", "yes", "no"),
    [
        ({"kind": "says", "any": ["Paris"]}, "It is paris.", "It is Parisian."),
        ({"kind": "says", "any": ["QX-1"], "exact": True}, "QX-1", "qx-1"),
        ({"kind": "number", "value": 8}, "5 + 3 = 8.", "8 + 3 = 11"),
        ({"kind": "number", "value": 1200}, "That is 1,200", "none"),
        ({"kind": "json", "keys": ["a"]}, 'Here:\n```json\n{"a": 1}\n```', '{"b": 1}'),
        ({"kind": "json", "keys": ["a"]}, '{"a": [1, 2]}', '{"a": 1,}'),
        ({"kind": "python", "call": "f(2)", "value": 4}, "def f(x):\n    return 2 * x", "def f(x) return x"),
    ],
)
def test_right_and_wrong(check: dict[str, object], yes: str, no: str) -> None:
    assert right(check, yes)
    assert not right(check, no)


def test_code_is_only_run_where_asked() -> None:
    check = {"kind": "python", "call": "f(2)", "value": 4}
    wrong = "```python\ndef f(x):\n    return 3 * x\n```"
    assert right(check, wrong)
    assert not right(check, wrong, run=True)
    assert right(check, wrong.replace("3", "2"), run=True)


@pytest.mark.parametrize(
    "code",
    [
        "def f():\n    while True: pass",
        "def f():\n    return len(bytearray(1 << 31))",
        "def f():\n    with open('x', 'w') as file:\n        file.write('x')\n    return 1",
        "raise SystemExit(3)",
        "def f():\n    return object()",
    ],
    ids=["no end", "memory", "a file", "no answer", "no JSON"],
)
def test_code_beyond_a_limit_has_no_value(code: str) -> None:
    assert run_code(code, "f()") is None


def test_output_without_an_end_is_ended() -> None:
    started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert run_code("import sys\nwhile True: sys.stdout.write('x' * 65536)", "1") is None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - started < 256 << 10


@pytest.mark.parametrize("leave", ["pass", "os.setsid()", "os.setsid(); os.fork() and os._exit(0)"])
def test_nothing_that_code_starts_outlives_it(leave: str) -> None:
    code = f"import os, time\ndef f():\n    pid = os.fork()\n    if pid == 0:\n        {leave}\n        time.sleep(600)\n    return pid"
    value = run_code(code, "f()")
    assert value is not None
    until(lambda: Path(f"/proc/{value}").exists(), lambda there: not there)


def test_a_value_without_the_mark_is_none() -> None:
    forged = "import os\nos.write(1, b'<value>1\\n1\\n')\nos._exit(0)"
    assert run_code(forged, "2") is None
    assert run_code("print('<value>1')", "2") == "2"


@pytest.mark.skipif(not landlock_version(), reason="this kernel has no Landlock")
@pytest.mark.parametrize("do", ["open({!r}, 'w')", "os.truncate({!r}, 0)", "os.remove({!r})", "os.mkdir({!r} + '2')"])
def test_code_changes_no_file_anywhere(tmp_path: Path, do: str) -> None:
    file = tmp_path / "mine"
    file.write_text("kept")
    assert run_code(f"import os\n{do.format(str(file))}", "1") is None
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("mine", "kept")]


def _namespaces() -> bool:
    """True if anybody may make namespaces here."""
    look = "import ctypes; raise SystemExit(ctypes.CDLL(None).unshare(0x5800_0000) != 0)"
    return subprocess.run([sys.executable, "-c", look], check=False).returncode == 0


@pytest.mark.skipif(not _namespaces(), reason="this kernel lets nobody make namespaces")
def test_code_has_no_network_and_no_rights_of_root() -> None:
    send = "import socket, os\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))"
    assert run_code(send, "1") is None
    assert run_code("import os", "os.geteuid() == 0") == "false"


def test_code_sees_none_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "1")
    look = "import os\ndef f():\n    return [os.environ.get('SECRET'), os.getcwd()]"
    value = run_code(look, "f()")
    assert value is not None
    assert value.startswith("[null, ")
    assert str(Path.cwd()) not in value


def test_every_skill_has_a_check_that_an_empty_answer_fails() -> None:
    assert not any(probe.check.is_right("", run=False) for probe in load_probes("skills").probes if probe.check)
