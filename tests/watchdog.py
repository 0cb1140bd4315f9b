# SPDX-License-Identifier: Apache-2.0
"""Ends a test that is stuck. Progress counts, seconds don't: on a slow or busy machine a test takes as long as it takes.

A test makes progress while anything that belongs to it, a thread of this process or of one that it started, runs, waits
for a CPU, or waits for a disk. It is stuck once it was looked at many times, a second apart, and everything slept. What
spins instead of sleeping is ended by the CPU time that it burns. So nothing else in the tests needs a time-out of its own.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

_PROC = Path("/proc")
_WANTS = ("R", "D")
"""States of a thread that runs or waits for a CPU, and of one that waits for a disk."""

_TICKS = os.sysconf("SC_CLK_TCK")
_EXIT_CODE = 70
_NAME = "watchdog"
_terminal: int | None = None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("stuck_after", "looks, a second apart, at which everything in a test slept", default="300")
    parser.addini("spins_after", "CPU seconds that a test and all that it started may use", default="3600")


def pytest_configure() -> None:
    """Keeps the way to the terminal, or to xdist, before a test's output is captured."""
    global _terminal  # noqa: PLW0603 - of this process
    _terminal = os.dup(sys.__stderr__.fileno()) if sys.__stderr__ else None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Watches a test, with what sets it up and takes it down."""
    if not (_PROC / "self" / "task").is_dir():
        return (yield)  # Nowhere but on Linux can this be seen.
    with Watch(int(item.config.getini("stuck_after")), int(item.config.getini("spins_after"))):
        return (yield)


class Stuck(pytest.fail.Exception):  # type: ignore[misc,name-defined]
    """Raised where the test stands."""


class Watch:
    """Raises `Stuck` in the main thread, and ends the process where that doesn't help.

    Args:
        looks: how often everything may have slept.
        cpu_seconds: how much the test may work.
    """

    def __init__(self, looks: int, cpu_seconds: int) -> None:
        self._looks, self._cpu_seconds = looks, cpu_seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=_NAME, daemon=True)

    def __enter__(self) -> None:
        self._said = ""
        self._before = signal.signal(signal.SIGUSR2, self._raise)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        signal.signal(signal.SIGUSR2, self._before)

    def _watch(self) -> None:
        if self._is_stuck():
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR2)
            if self._is_stuck():  # In what it needs to end.
                _end_process(self._said)

    def _is_stuck(self) -> bool:
        """Looks until the test has ended or is stuck."""
        slept, begin = 0, None
        while not self._ended.wait(1):  # Most tests are over before the first look, and pay for none.
            look = _Look()
            begin = begin or look
            slept += not look.wants
            if slept >= self._looks:
                self._said = f"nothing of this test wanted a CPU or a disk in {slept} of the looks at it"
                return True
            if look.cpu_seconds - begin.cpu_seconds > self._cpu_seconds:
                self._said = f"this test used more than {self._cpu_seconds} s of CPU time"
                return True
        return False

    def _raise(self, *_: object) -> None:
        raise Stuck(f"{self._said}\n{_stacks()}")


class _Look:
    """This process and all that it started, at a moment.

    Attributes:
        wants: whether anything in them wants to go on.
        cpu_seconds: what they used so far.
    """

    def __init__(self) -> None:
        self.wants, self.cpu_seconds = False, 0.0
        for process in _tree():
            for task in (_PROC / str(process) / "task").glob("*"):
                if int(task.name) != threading.get_native_id():
                    self.wants |= (_stat(task) or ["-"])[0] in _WANTS
            if stat := _stat(_PROC / str(process)):
                self.cpu_seconds += sum(map(int, stat[11:15])) / _TICKS  # Its own, and of children that have ended.


def _tree() -> list[int]:
    parents = {int(folder.name): int(stat[1]) for folder in _PROC.glob("[0-9]*") if (stat := _stat(folder))}
    found = [os.getpid()]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


def _stat(folder: Path) -> list[str]:
    """The fields from the state on; none where it is gone. The name before them may hold anything."""
    try:
        return (folder / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _end_process(reason: str) -> None:
    if _terminal is not None:
        os.write(_terminal, f"stuck: {reason}\n{_stacks()}".encode())
    os._exit(_EXIT_CODE)


def _stacks() -> str:
    """Where the other threads of this process are."""
    frames = sys._current_frames()
    return "".join(
        f"\nthread {thread.name}:\n{''.join(traceback.format_stack(frames[thread.ident]))}"
        for thread in threading.enumerate()
        if thread.ident in frames and thread.name != _NAME and thread is not threading.current_thread()
    )
