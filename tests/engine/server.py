# SPDX-License-Identifier: Apache-2.0
"""A real server, started as a user would: `vllm-surgery serve`."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx

from tests.engine.processes import COMMAND, environment, kill, start
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.engine.processes import Process

SMALL = ("--enforce-eager", "--kv-cache-memory-bytes", "134217728")


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
    process: Process

    @property
    def log(self) -> str:
        return self.log_file.read_text()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(log_file: Path, *arguments: str, **more: str) -> Process:
    """`vllm-surgery serve` at the head of a group of processes, which `kill` ends."""
    return start([COMMAND, "serve", *arguments], environment(**more), out=log_file)


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


def _is_ready(server: Server, process: Process) -> bool:
    if process.poll() is not None:
        raise AssertionError(f"the server ended with {process.returncode}")
    try:
        return httpx.get(f"{server.url}/health", timeout=None).is_success
    except httpx.TransportError:
        return False
