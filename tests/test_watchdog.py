# SPDX-License-Identifier: Apache-2.0
"""A test that is stuck is ended, and one that is only slow isn't."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.slow  # A pytest of its own for each test.

pytest_plugins = ["pytester"]

BUSY = """
import subprocess, sys
WORK = "import time\\nwhile time.process_time() < {}: pass"
def test_one(): subprocess.run([sys.executable, "-c", WORK])
"""


@pytest.fixture
def outcome(pytester: pytest.Pytester) -> Callable[..., str]:
    """Runs tests in a process of their own, under a watch that has little patience; gives what pytest says."""

    def run(code: str, *, looks: int = 2, cpu_seconds: int = 100) -> str:
        pytester.makepyfile(code)
        limits = ("-o", f"stuck_after={looks}", "-o", f"spins_after={cpu_seconds}")
        done = pytester.runpytest_subprocess("-p", "tests.watchdog", "-p", "no:cacheprovider", *limits)
        return done.stdout.str() + done.stderr.str()

    return run


def test_a_test_that_sleeps_for_ever_is_ended_where_it_stands_and_the_next_one_runs(
    outcome: Callable[..., str],
) -> None:
    said = outcome(
        "import pytest, threading, time\n"
        "def wait_for_godot(): time.sleep(3600)\n"
        "@pytest.fixture\n"
        "def slow(): wait_for_godot()\n"
        "def test_of_a_thing_that_is_never_made(slow): pass\n"
        "def test_that_waits_for_a_thread():\n"
        "    thread = threading.Thread(target=wait_for_godot, name='vladimir', daemon=True)\n"
        "    thread.start()\n"
        "    thread.join()\n"
        "def test_that_passes(): pass"
    )
    # Once where it happened; a summary below may tell it again.
    assert len(re.findall(r"^E +\S*Stuck: nothing of this test wanted a CPU or a disk in 2 of", said, re.M)) == 2
    assert "thread vladimir:" in said, "what other threads do is told too"
    assert "    thread.join()" in said
    assert "1 failed, 1 passed, 1 error" in said


def test_a_child_that_works_is_progress(outcome: Callable[..., str]) -> None:
    assert "1 passed" in outcome(BUSY.format(6), looks=3)


def test_a_child_that_spins_is_ended_by_the_work_that_it_does(outcome: Callable[..., str]) -> None:
    assert "Stuck: this test used more than 2 s of CPU time" in outcome(BUSY.format(3600), cpu_seconds=2)


def test_a_test_that_does_not_end_when_it_is_told_ends_the_process(outcome: Callable[..., str]) -> None:
    said = outcome("import time\ndef test_one():\n    try: time.sleep(3600)\n    finally: time.sleep(3600)")
    assert "stuck: nothing of this test" in said
    assert "passed" not in said
