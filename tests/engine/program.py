# SPDX-License-Identifier: Apache-2.0
"""A part of the tests as a program of its own, whose engines live in its process and end with it."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.engine.processes import environment as environment_with
from tests.engine.processes import kill, start


@dataclass(frozen=True)
class Ended:
    """A program that has ended.

    Attributes:
        written: what is in the file that its last argument named.
        log: everything that it said.
        code: its exit code; the negative number of the signal that ended it.
    """

    written: bytes
    log: str
    code: int

    @property
    def failure(self) -> str:
        """How it ended, with its last words."""
        return f"the engine process ended with {self.code}:\n{self.log[-6000:]}"


def run_program(*words: str, given: Any, **environment: str) -> tuple[bytes, str]:
    """What a program wrote to the file that its last argument names, and its log. The arguments are those of `ended`."""
    done = ended(*words, given=given, **environment)
    assert done.code == 0, done.failure
    return done.written, done.log


def ended(*words: str, given: Any, **environment: str) -> Ended:
    """Runs a program to its end.

    Args:
        words: what Python is asked to run; the name of a file that it may write is added.
        given: what it reads as JSON on stdin.
        environment: on top of that of all tests.
    """
    with tempfile.TemporaryDirectory() as work:
        out, log, stdin = (Path(work) / name for name in ("out", "log", "given"))
        stdin.write_text(json.dumps(given))
        process = start([*words, str(out)], environment_with(**environment), out=log, given=stdin)
        try:
            code = process.wait()
        finally:
            kill(process)
        return Ended(out.read_bytes() if out.exists() else b"", log.read_text(errors="replace"), code)
