# SPDX-License-Identifier: Apache-2.0
"""Runs a few lines that a model wrote, in a process with limits. Only where the user asked for it.

The limits keep accidents small: a loop without end, a list that fills the memory, files. They are no wall against code
that means harm: it can read what the user can read.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile

SECONDS = 2
"""Of processor time: a small function needs milliseconds, Python's own start some hundredths of a second. By the clock
it may be `WAIT` times as much, since the machine may be busy with the server."""
WAIT = 10
MEMORY_BYTES = 512 << 20
OUTPUT_LIMIT = 10_000
"""Characters of output that are read."""

_MARK = "<value>"


def run_code(code: str, call: str) -> str | None:
    """The value of `call` after `code`, as JSON; None where there is none: an error, a limit, or no JSON for it."""
    program = f"{code}\nimport json\nprint({_MARK!r} + json.dumps({call}))\n"
    with tempfile.TemporaryDirectory() as work:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-S", "-c", program],
                cwd=work,
                env={},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=WAIT * SECONDS,
                preexec_fn=_limit,
                check=False,
            )
        except (subprocess.TimeoutExpired, OSError, ValueError):
            return None
    last = done.stdout[-OUTPUT_LIMIT:].decode(errors="replace").strip().rpartition("\n")[2]
    return last.removeprefix(_MARK) if done.returncode == 0 and last.startswith(_MARK) else None


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
