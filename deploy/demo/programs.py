# SPDX-License-Identifier: Apache-2.0
"""Programs that run beside this one and end with it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

STOP_SECONDS = 60
"""For a program to end by itself once it is told to."""


class ProgramError(Exception):
    """A program didn't come up; the text ends with its last words."""


@contextmanager
def running(command: Sequence[str], log: Path, ready: str, seconds: float, **environment: str) -> Iterator[None]:
    """A program that answers, ended with the block.

    Args:
        command: to run.
        log: where its output goes.
        ready: a URL that answers 200 once it is ready.
        seconds: until then, at most.
        environment: more variables for it.

    Raises:
        ProgramError: it ended, or wasn't ready in time.
    """
    with log.open("w") as output:
        # A session of its own, so that Ctrl-C reaches this program alone, which then ends the others in order.
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    try:
        _await(process, ready, seconds, log)
        yield
    finally:
        _end(process)


def _await(process: subprocess.Popen[bytes], ready: str, seconds: float, log: Path) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ProgramError(f"{log.stem} ended with {process.returncode}; its last words:\n{_last_words(log)}")
        try:
            if httpx.get(ready, timeout=2).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise ProgramError(f"{log.stem} was not ready after {seconds:.0f} s; its last words:\n{_last_words(log)}")


def _last_words(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
