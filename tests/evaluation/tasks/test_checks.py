# SPDX-License-Identifier: Apache-2.0
"""Checks of small tasks, and the process in which code is run."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import TypeAdapter

from vllm_surgery.evaluation.probes import load_probes
from vllm_surgery.evaluation.tasks.checks import Check
from vllm_surgery.evaluation.tasks.sandbox import run_code

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


def test_code_sees_none_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "1")
    look = "import os\ndef f():\n    return [os.environ.get('SECRET'), os.getcwd()]"
    value = run_code(look, "f()")
    assert value is not None
    assert value.startswith("[null, ")
    assert str(Path.cwd()) not in value


def test_every_skill_has_a_check_that_an_empty_answer_fails() -> None:
    assert not any(probe.check.is_right("", run=False) for probe in load_probes("skills").probes if probe.check)
