# SPDX-License-Identifier: Apache-2.0
"""Talking to a server over a real connection, to servers of all kinds."""

from __future__ import annotations

import json
import threading
from contextlib import AbstractContextManager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.examples import patch_data, refusal
from vllm_surgery.client.client import SurgeryClient
from vllm_surgery.errors import PluginMissingError, ServerError, ServerUnreachableError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

TIMES = {"stage": 1.0, "pause": 2.0, "apply": 3.0, "verify": 4.0, "total": 10.0}
REPORT = {
    "id": "b@1",
    "previous": "a@1",
    "epoch": 4,
    "units": 1,
    "tensors": 1,
    "modules": 1,
    "verified": 12,
    "unverified": [{"parts": 2, "reason": "no kernel tells"}],
    "milliseconds": TIMES,
}
STATE = {
    "active": "a@1",
    "patches": [{"name": "a", "id": "a@1"}],
    "since": "2026-01-02T03:04:05+00:00",
    "epoch": 3,
    "units": 2,
    "tensors": 1,
    "ranks": 1,
    "desired": {"id": "a@1", "error": None},
    "watching": False,
    "slots": None,
    "on_loop": None,
    "can_swap": True,
    "cannot_swap_reason": None,
    "model": {"name": "demo", "architectures": ["LlamaForCausalLM"], "layers": 30, "experts": None},
}
LISTING = {"patches": [{"name": "a", "id": "a@1", "error": None}]}


class FakeServer:
    """Gives prepared answers; remembers what was asked.

    Attributes:
        answers: status and body for each path.
        asked: method, path, headers and body of each request.
    """

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, Any]] = {"/v1/surgery": (200, STATE), "/v1/surgery/patches": (200, LISTING)}
        self.asked: list[tuple[str, str, dict[str, str], Any]] = []
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def error(self, status: int, kind: str, message: str) -> None:
        body = {"error": {"message": message, "type": kind, "param": None, "code": status}}
        self.answers["/v1/surgery"] = (status, body)

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                length = int(self.headers.get("content-length", 0))
                body = json.loads(self.rfile.read(length)) if length else None
                server.asked.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                status, content = server.answers.get(self.path, (404, {"detail": "Not Found"}))
                data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PUT = _answer  # noqa: N815 - the names that the base class calls

            def log_message(self, *_: object) -> None:
                pass

        return Handler


@pytest.fixture
def server() -> Iterator[FakeServer]:
    made = FakeServer()
    yield made
    made.stop()


def test_the_state_is_read(server: FakeServer) -> None:
    assert SurgeryClient(server.url).state().model_dump() == STATE


def test_the_listing_is_read(server: FakeServer) -> None:
    assert SurgeryClient(server.url).patches().model_dump() == LISTING


def test_a_swap_sends_what_it_is_given(server: FakeServer) -> None:
    server.answers["/v1/surgery"] = (200, REPORT)
    report = SurgeryClient(server.url).swap(["a", patch_data()], mode="wait", if_epoch=3)
    assert report.model_dump() == REPORT
    ((method, path, headers, body),) = server.asked
    assert (method, path, headers["content-type"]) == ("PUT", "/v1/surgery", "application/json")
    assert body == {"patches": ["a", patch_data()], "mode": "wait", "if_epoch": 3}


def test_no_epoch_is_no_condition(server: FakeServer) -> None:
    server.answers["/v1/surgery"] = (200, REPORT)
    SurgeryClient(server.url).swap([])
    assert server.asked[0][3] == {"patches": [], "mode": "keep"}


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/"])
def test_the_address_may_be_the_one_that_openais_clients_take(server: FakeServer, ending: str) -> None:
    assert SurgeryClient(server.url + ending).state().active == "a@1"


def test_the_key_is_sent_where_there_is_one(server: FakeServer) -> None:
    SurgeryClient(server.url, "secret").state()
    SurgeryClient(server.url).state()
    assert [headers.get("authorization") for _, _, headers, _ in server.asked] == ["Bearer secret", None]


def test_the_surgery_key_is_sent_with_changes_alone(server: FakeServer) -> None:
    client = SurgeryClient(server.url, "secret", "scalpel")
    client.state()
    server.answers["/v1/surgery"] = (200, REPORT)
    client.swap([])
    keys = [(headers["authorization"], headers.get("x-surgery-key")) for _, _, headers, _ in server.asked]
    assert keys == [("Bearer secret", None), ("Bearer secret", "scalpel")]


def test_a_surgery_key_that_no_header_can_hold_is_refused() -> None:
    said = refusal(lambda: SurgeryClient("http://x", None, "a\nb"), UsageError)
    assert said == "the surgery key holds a character that no header can hold"


@pytest.mark.parametrize("key", ["two\nlines", "schlüssel"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(server: FakeServer, key: str) -> None:
    said = refusal(lambda: SurgeryClient(server.url, key).state(), UsageError)
    assert said == "the API key holds a character that no header can hold"


def test_the_servers_refusal_is_passed_on(server: FakeServer) -> None:
    server.error(409, "ConflictError", "another swap runs")
    with pytest.raises(ServerError, match=r"^the server refused: another swap runs$") as caught:
        SurgeryClient(server.url).swap([])
    assert (caught.value.status, caught.value.kind) == (409, "ConflictError")


@pytest.mark.parametrize("body", ["", "<html>", '{"error": "no"}', "[]", '{"error": {"message": "x"}}'])
def test_an_error_that_says_nothing_is_named_by_its_status(server: FakeServer, body: str) -> None:
    server.answers["/v1/surgery"] = (503, body)
    said = refusal(lambda: SurgeryClient(server.url).state(), ServerError)
    assert said == "the server answered 503 Service Unavailable"


def test_what_a_server_says_is_one_printable_line(server: FakeServer) -> None:
    server.error(422, "Patch\x1bError", "a\nb \x1b[31m" + "x" * 10_000)
    assert len(refusal(lambda: SurgeryClient(server.url).state(), ServerError)) <= 500


def test_a_server_that_wants_a_key_says_so(server: FakeServer) -> None:
    server.answers["/v1/surgery"] = (401, {"error": "Unauthorized"})
    assert refusal(lambda: SurgeryClient(server.url).state(), UsageError) == f"{server.url}: wants an API key"
    said = refusal(lambda: SurgeryClient(server.url, "wrong").state(), UsageError)
    assert said == f"{server.url}: wants another API key"


@pytest.mark.parametrize("status", [404, 405])
def test_a_server_without_the_plugin_says_how_to_get_it(server: FakeServer, status: int) -> None:
    server.answers["/v1/surgery"] = (status, {"detail": "Not Found"})
    said = refusal(lambda: SurgeryClient(server.url).state(), PluginMissingError)
    assert said == (
        f"{server.url}: has no vllm-surgery: start it with `vllm-surgery serve`, or name vllm_surgery in VLLM_PLUGINS"
    )


@pytest.mark.parametrize("body", ["", "<html>", "{}", "[]"])
def test_something_else_that_answers_is_no_server_of_ours(server: FakeServer, body: str) -> None:
    server.answers["/v1/surgery"] = (200, body)
    said = refusal(lambda: SurgeryClient(server.url).state(), UsageError)
    assert said == f"{server.url}: answers, but not as vllm-surgery does"


def test_a_redirection_is_not_followed(server: FakeServer) -> None:
    """The key would go to wherever it leads."""
    server.answers["/v1/surgery"] = (302, "")
    assert refusal(lambda: SurgeryClient(server.url).state(), ServerError) == "the server answered 302 Found"


def test_nobody_there_is_one_line(server: FakeServer) -> None:
    server.stop()
    assert refusal(lambda: SurgeryClient(server.url).state(), ServerUnreachableError).startswith(f"{server.url}: ")


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://localhost", "http://", "http://x:port", "\n"])
def test_what_is_no_address_is_one_line(url: str) -> None:
    refusal(lambda: SurgeryClient(url).state(), UsageError)


def test_an_address_of_no_machine_is_one_line() -> None:
    refusal(lambda: SurgeryClient("http://[").state(), ServerUnreachableError)


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def stream(*_: object, timeout: httpx.Timeout, **__: object) -> AbstractContextManager[httpx.Response]:
        raise httpx.ReadTimeout("") if timeout.read else AssertionError

    monkeypatch.setattr("vllm_surgery.client.client.httpx.stream", stream)
    said = refusal(lambda: SurgeryClient("http://slow").state(), ServerUnreachableError)
    assert said == "http://slow: no answer in time"


def test_a_swap_is_waited_for_as_long_as_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    timeouts: list[httpx.Timeout] = []

    def stream(*_: object, timeout: httpx.Timeout, **__: object) -> AbstractContextManager[httpx.Response]:
        timeouts.append(timeout)
        return nullcontext(httpx.Response(200, json=REPORT, request=httpx.Request("PUT", "http://slow")))

    monkeypatch.setattr("vllm_surgery.client.client.httpx.stream", stream)
    SurgeryClient("http://slow").swap([], mode="wait")
    assert timeouts[0].read is None
    assert timeouts[0].connect


def test_an_answer_without_an_end_is_not_read_to_it(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm_surgery.client.client.MOST_BYTES", 1 << 20)
    server.answers["/metrics"] = (200, "x" * (1 << 20))
    assert len(SurgeryClient(server.url).metrics()) == 1 << 20
    server.answers["/metrics"] = (200, "x" * ((1 << 20) + 1))
    said = refusal(lambda: SurgeryClient(server.url).metrics(), UsageError)
    assert said == f"{server.url}: answers with more than 1 MiB, as no server does"
