# SPDX-License-Identifier: Apache-2.0
"""A real server, started as a user would: `vllm-surgery serve`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from tests.engine.program import ENVIRONMENT
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

SMALL = ("--enforce-eager", "--kv-cache-memory-bytes", "134217728")
COMMAND = str(Path(sys.executable).with_name("vllm-surgery"))


@dataclass
class Server:
    """A server that answers.

    Attributes:
        url: without a path.
        log_file: everything that it wrote.
        process: its first one, for those who kill it.
    """

    url: str
    log_file: Path
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> str:
        return self.log_file.read_text()


def environment(**more: str) -> dict[str, str]:
    """One process for engine and worker, which halves the time to start."""
    return {**os.environ, **ENVIRONMENT, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", **more}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(log_file: Path, *arguments: str, **more: str) -> subprocess.Popen[bytes]:
    """`vllm-surgery serve` at the head of a group of processes, which `kill` ends."""
    with log_file.open("w") as log:
        return subprocess.Popen(
            [COMMAND, "serve", *arguments],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment(**more),
            start_new_session=True,
        )


def kill(process: subprocess.Popen[Any]) -> None:
    """Ends a process that leads a group, and all of its group, as a machine goes that loses its power."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def running_server(folder: Path, *arguments: str, **more: str) -> Iterator[Server]:
    """A server that is ready, stopped at the end by the signal that an orchestrator would send."""
    port, log_file = free_port(), folder / "server.log"
    process = launch(log_file, *arguments, "--port", str(port), "--host", "127.0.0.1", **more)
    server = Server(f"http://127.0.0.1:{port}", log_file, process)
    try:
        until(lambda: _is_ready(server, process), every=0.2)
        yield server
        process.terminate()
        process.wait()
    except BaseException as error:
        error.add_note(f"The server's last words:\n{server.log[-6000:]}")
        raise
    finally:
        kill(process)  # What is left of it where it didn't end by itself.


def _is_ready(server: Server, process: subprocess.Popen[bytes]) -> bool:
    if process.poll() is not None:
        raise AssertionError(f"the server ended with {process.returncode}")
    try:
        return httpx.get(f"{server.url}/health", timeout=None).is_success
    except httpx.TransportError:
        return False
