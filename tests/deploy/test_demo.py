# SPDX-License-Identifier: Apache-2.0
"""The parts of `make demo`; the whole is a person's to look at."""

from __future__ import annotations

import http.server
import json
import math
import os
import sys
import threading
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from deploy.demo.figures import summary
from deploy.demo.programs import ProgramError, running
from deploy.demo.traffic import PROMPTS, traffic
from tests.engine.monitoring.watched import HEALTHY, LOOPED, Watched
from tests.engine.server import free_port
from tests.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

SERVER = "import http.server as h, sys; h.test(h.SimpleHTTPRequestHandler, port=int(sys.argv[1]), bind='127.0.0.1')"


def test_a_program_is_there_when_the_block_begins_and_gone_when_it_ends(tmp_path: Path) -> None:
    port = free_port()
    pid_file = tmp_path / "pid"
    code = f"import os, pathlib; pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid())); {SERVER}"
    with running([sys.executable, "-c", code, str(port)], tmp_path / "log", f"http://127.0.0.1:{port}/", math.inf):
        os.kill(int(pid_file.read_text()), 0)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


def test_a_program_is_gone_after_an_error_too(tmp_path: Path) -> None:
    port = free_port()
    with (
        pytest.raises(KeyboardInterrupt),
        running([sys.executable, "-c", SERVER, str(port)], tmp_path / "log", f"http://127.0.0.1:{port}/", math.inf),
    ):
        raise KeyboardInterrupt
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/")


def test_a_program_that_does_not_come_up_says_why(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such model')"]
    with (
        pytest.raises(ProgramError, match=r"^server ended with 1; its last words:\nno such model$"),
        running(command, tmp_path / "server.log", f"http://127.0.0.1:{free_port()}/", math.inf),
    ):
        pass


def test_a_program_that_never_answers_is_not_waited_for(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with (
        pytest.raises(ProgramError, match=r"^server was not ready after 1 s"),
        running(command, tmp_path / "server.log", f"http://127.0.0.1:{free_port()}/", 1),
    ):
        pass


def test_loops_and_answers_are_told_by_patch() -> None:
    watched = Watched(registry=CollectorRegistry())
    assert summary(generate_latest(watched.registry).decode()) == "no answers yet"
    watched.answer("a", LOOPED)
    watched.answer("b", HEALTHY)
    watched.answer("c", HEALTHY, version="fix@12345678")
    assert summary(generate_latest(watched.registry).decode()) == (
        "none: 1 loops in 2 answers (50%); fix@12345678: 0 loops in 1 answers (0%)"
    )


class _Model(http.server.BaseHTTPRequestHandler):
    """Answers every question but the second."""

    asked: list[str]

    def do_POST(self) -> None:
        body: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body["messages"][0]["content"])
        self.send_response(500 if len(self.asked) == 2 else 200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_questions_are_asked_in_turn_and_an_error_stops_none() -> None:
    _Model.asked = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Model)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with traffic(f"http://127.0.0.1:{server.server_port}", "m", streams=1):
        until(lambda: len(_Model.asked) >= len(PROMPTS) + 2)
    server.shutdown()
    assert _Model.asked[: len(PROMPTS) + 1] == [*PROMPTS, PROMPTS[0]]
