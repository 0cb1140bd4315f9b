# SPDX-License-Identifier: Apache-2.0
"""Files that take long are run first, whether or not they are in the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import longest_first

if TYPE_CHECKING:
    from collections.abc import Callable

pytest_plugins = ["pytester"]

TABLE = {"test_long.py": 100, "test_middle.py": 50, "test_gone.py": 20}


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Callable[..., pytest.HookRecorder]:
    """Runs four files of a test each, under a table that knows two of them."""
    for name, mark in (("long", ""), ("middle", ""), ("new", ""), ("starts_a_server", "@pytest.mark.engine\n")):
        code = f"import pytest\n{mark}def test_one(): pass\ndef test_two(): pass"
        pytester.makepyfile(**{f"test_{name}": code})
    pytester.makeini("[pytest]\nmarkers =\n  engine: starts one\n  slow: takes long")
    table = Path(pytester.path) / "durations.json"
    table.write_text(json.dumps(TABLE))
    monkeypatch.setattr(longest_first, "TABLE", table)
    return lambda *words: pytester.inline_run("-p", "tests.longest_first", *words)


def order(result: pytest.HookRecorder) -> list[str]:
    return [call.item.nodeid for call in result.getcalls("pytest_runtest_protocol")]


def test_the_longest_file_comes_first_and_its_tests_stay_in_order(run: Callable[..., pytest.HookRecorder]) -> None:
    files = ["test_long.py", "test_starts_a_server.py", "test_middle.py", "test_new.py"]
    assert order(run()) == [f"{file}::test_{number}" for file in files for number in ("one", "two")]


def test_files_that_take_long_are_slow(run: Callable[..., pytest.HookRecorder]) -> None:
    assert order(run("-m", "not slow")) == ["test_new.py::test_one", "test_new.py::test_two"]


def test_nothing_is_written_unless_it_is_asked_for(run: Callable[..., pytest.HookRecorder]) -> None:
    run()
    assert json.loads(longest_first.TABLE.read_text()) == TABLE


def test_durations_are_kept_for_files_that_are_there(
    run: Callable[..., pytest.HookRecorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(longest_first, "LEAST", 0.0)
    run("--write-durations", "test_new.py")
    assert json.loads(longest_first.TABLE.read_text()) == {"test_long.py": 100, "test_middle.py": 50, "test_new.py": 0}


def test_the_table_names_no_file_that_is_gone() -> None:
    root = Path(__file__).parents[1]
    assert [file for file in json.loads(longest_first.TABLE.read_text()) if not (root / file).exists()] == []
