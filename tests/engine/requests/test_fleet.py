# SPDX-License-Identifier: Apache-2.0
"""Three servers with slots: a swap fills a slot on all of them or on none, and no stream changes its patch."""

from __future__ import annotations

import json
import threading
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.engine.server import Server, kill
from tests.engine.streams import Streams
from tests.engine.test_fleet import SERVERS, answers, of, states, three_servers
from tests.waiting import until
from vllm_surgery.cli import main

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.localization.planted import Planted

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def servers(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    """Three of them; the last one is killed in the last test."""
    with three_servers(planted, tmp_path_factory, "--patch-slots", "2") as running:
        yield running


def defaults(servers: list[Server]) -> list[dict[str, float]]:
    """What requests get that choose nothing: by name, without digests."""
    return [
        {name.partition("@")[0]: share for name, share in state["slots"]["default"].items()}
        for state in states(servers)
    ]


def test_all_fill_a_slot_under_load_and_streams_keep_theirs(
    servers: list[Server], patches: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = answers(servers)
    with ExitStack() as stack:
        streams = [stack.enter_context(Streams(server.url, 2, 200, vocabulary=200)) for server in servers]
        for stream in streams:
            until(lambda stream=stream: len(stream.done), lambda begun: begun >= 3)  # type: ignore[misc]
        assert main(["swap", patches["cure"], *of(servers)]) == 0
    assert [stream.error for one in streams for stream in one.done if stream.error] == []
    assert {stream.finish for one in streams for stream in one.done} == {"length"}
    assert defaults(servers) == [{"cure": 1.0}] * SERVERS
    after = answers(servers)
    assert (len(before), len(after)) == (1, 1)
    assert before != after
    assert main(["status", *of(servers)]) == 0
    assert capsys.readouterr().out.endswith("3 servers serve the same\n")


def test_a_request_chooses_on_each_of_them_what_is_in_a_slot(servers: list[Server]) -> None:
    model = httpx.get(f"{servers[0].url}/v1/models", timeout=None).json()["data"][0]["id"]
    body = {"prompt": [1, 19, 20], "max_tokens": 4, "temperature": 0}
    for choice, name in ((f"{model}@cure", "cure"), (f"{model}@none", "none")):
        for server in servers:
            answer = httpx.post(f"{server.url}/v1/completions", json={**body, "model": choice}, timeout=None)
            assert answer.raise_for_status().headers["x-surgery-patch"].partition("@")[0] == name


def test_a_rehearsal_leaves_all_as_they_are(servers: list[Server], patches: dict[str, str]) -> None:
    before = states(servers)
    assert main(["swap", patches["decoy"], "--check", *of(servers)]) == 0
    assert defaults(servers) == [{"cure": 1.0}] * SERVERS
    assert [state["slots"]["patches"] for state in states(servers)] == [state["slots"]["patches"] for state in before]


@contextmanager
def lost_when_swapped(server: Server) -> Iterator[str]:
    """An address that leads to a server until it is told to swap, which ends it at once; rehearsals don't."""

    class Handler(BaseHTTPRequestHandler):
        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            if self.command == "PUT" and not json.loads(body).get("check"):
                kill(server.process)
                server.process.wait()
                return
            kind = {"content-type": self.headers.get("content-type", "")}
            reply = httpx.request(self.command, server.url + self.path, content=body, headers=kind, timeout=None)
            self.send_response(reply.status_code)
            self.send_header("Content-Length", str(len(reply.content)))
            self.end_headers()
            self.wfile.write(reply.content)

        do_GET = do_PUT = _pass_on  # noqa: N815 - the names that the base class calls

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()


def test_when_one_is_lost_in_the_middle_the_others_serve_what_they_served(
    servers: list[Server], patches: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    *others, doomed = servers
    before = answers(others)
    with lost_when_swapped(doomed) as url:
        assert main(["swap", patches["decoy"], *of(others), "--url", url]) == 1
    out, err = capsys.readouterr()
    fates = [line.split(maxsplit=1)[1].partition(";")[0] for line in out.splitlines()]
    assert fates == ["taken back", "taken back", "gone"]
    assert "2 of 3 servers serve what they served before" in err
    assert defaults(others) == [{"cure": 1.0}] * len(others)
    assert answers(others) == before
