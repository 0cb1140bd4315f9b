# SPDX-License-Identifier: Apache-2.0
"""`vllm-surgery` in a process of its own each time, forked from one that has imported vLLM: that takes seconds once.

As a program it reads a line of JSON for each start, ``[arguments, file for stdout, file for stderr]``, and prints its
exit code.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from tests.engine.server import environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Start = Callable[..., subprocess.CompletedProcess[str]]


@contextmanager
def forking() -> Iterator[Start]:
    """Runs the command to its end, with the arguments given; as often as it is called."""
    program = [sys.executable, "-m", "tests.engine.forking"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (
        TemporaryDirectory() as folder,
        subprocess.Popen(program, env=environment(), cwd=Path(__file__).parents[2], **pipes) as process,
    ):
        out, err = Path(folder) / "out", Path(folder) / "err"

        def start(*arguments: str) -> subprocess.CompletedProcess[str]:
            assert process.stdin is not None
            assert process.stdout is not None
            print(json.dumps([arguments, str(out), str(err)]), file=process.stdin, flush=True)
            code = int(process.stdout.readline())
            return subprocess.CompletedProcess(arguments, code, out.read_text(), err.read_text())

        yield start
        assert process.stdin is not None
        process.stdin.close()


def _start(arguments: list[str], out: str, err: str) -> int:
    """The exit code of the command in a process of its own; what it started, and didn't end, is ended."""
    child = os.fork()
    if child == 0:
        os.setsid()
        for descriptor, file in ((1, out), (2, err)):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        from vllm_surgery.cli import main

        sys.exit(main(arguments))
    _, status = os.waitpid(child, 0)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(status)


def main() -> None:
    import vllm.entrypoints.openai.api_server  # noqa: F401 - here and not in each process

    import vllm_surgery.engine.serve  # noqa: F401

    for line in sys.stdin:
        print(_start(*json.loads(line)), flush=True)


if __name__ == "__main__":
    main()
