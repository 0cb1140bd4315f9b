# SPDX-License-Identifier: Apache-2.0
"""A server of vLLM's kind with vllm-surgery, made of rules: which answers loop depends on the patch, probe and seed."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.client.test_client import STATE, TIMES
from vllm_surgery.loops import TokenTable
from vllm_surgery.patch.format import Patch
from vllm_surgery.patch.patch_set import NO_PATCH, PatchSet, SourcedPatch

WORDS = 400
TABLE = TokenTable([f" w{number}" for number in range(WORDS)])
LOOP, SOUND = [*range(20), *(list(range(30, 42)) * 12)], list(range(50, 130))


class FakeVllm:
    """Answers as long as it isn't told otherwise.

    Attributes:
        active: the patch set's id.
        refuses: path and what is answered there: status, type and message.
        asked: the bodies of all chat requests.
        stop_after: chat requests after which it refuses all others.
    """

    def __init__(self, key: str | None = None) -> None:
        self.active, self.epoch, self.key = NO_PATCH, 0, key
        self.refuses: dict[str, tuple[int, str, str]] = {}
        self.asked: list[dict[str, Any]] = []
        self.swaps: list[str] = []
        self.stop_after: int | None = None
        self.can_swap, self.plugin, self.context = True, True, 4096
        self.on_chat: Any = None
        self._http = _Http(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def answer(self, method: str, path: str, body: Any, key: str | None) -> tuple[int, Any]:
        if self.key is not None and key != f"Bearer {self.key}":
            return 401, {"error": "Unauthorized"}
        if path in self.refuses:
            status, kind, message = self.refuses[path]
            return status, {"error": {"message": message, "type": kind, "param": None, "code": status}}
        routes = {
            "/v1/models": lambda: {"data": [{"id": "fake", "root": "fake", "max_model_len": self.context}]},
            "/version": lambda: {"version": "0.0"},
            "/tokenize": lambda: {"tokens": [1, 2, 3] if "messages" in body else [4, 5, 6, 7]},
            "/v1/chat/completions": lambda: self._chat(body),
            "/v1/completions": lambda: {"choices": [{"prompt_logprobs": self._logprobs(body["prompt"])}]},
        }
        if self.plugin:
            routes["/v1/surgery"] = (lambda: self._swap(body)) if method == "PUT" else self._state
            routes["/v1/surgery/patches"] = lambda: {"patches": []}
        if path not in routes:
            return 404, {"detail": "Not Found"}
        if path == "/v1/chat/completions" and self.stop_after is not None and len(self.asked) >= self.stop_after:
            return 503, {"error": {"message": "going down", "type": "ServiceUnavailable", "code": 503}}
        return 200, routes[path]()

    def loops(self, prompt: str, seed: int) -> bool:
        """Whether an answer loops: two of three without a patch, one of three with a patch called `cure`."""
        share = 1 if self.active.startswith("cure@") else 2
        return "list" in prompt.lower() and (len(prompt) + seed) % 3 < share

    def _chat(self, body: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(body)
        if self.on_chat is not None:
            self.on_chat()
        loops = self.loops(body["messages"][0]["content"], body.get("seed", 0))
        tokens = (LOOP if loops else SOUND)[: body["max_tokens"]]
        choice = {
            "message": {"content": TABLE.text(tokens)},
            "token_ids": tokens,
            "finish_reason": "length" if loops else "stop",
        }
        return {"choices": [choice]}

    def _logprobs(self, prompt: list[int]) -> list[Any]:
        logprob = -0.5 if self.active == NO_PATCH else -0.6
        return [None, *({str(token): {"logprob": logprob}, "999": {"logprob": -2.0}} for token in prompt[1:])]

    def _state(self) -> dict[str, Any]:
        patches = [] if self.active == NO_PATCH else [{"name": self.active.partition("@")[0], "id": self.active}]
        cannot = None if self.can_swap else "the model is quantised"
        changed = {"active": self.active, "epoch": self.epoch, "patches": patches, "can_swap": self.can_swap}
        return {**STATE, **changed, "cannot_swap_reason": cannot}

    def _swap(self, body: dict[str, Any]) -> dict[str, Any]:
        before = self.active
        members = [SourcedPatch("p", Patch.from_data(patch)) for patch in body["patches"]]
        self.active, self.epoch = PatchSet(tuple(members)).id, self.epoch + 1
        self.swaps.append(self.active)
        counts = {"epoch": self.epoch, "units": 1, "tensors": 1, "modules": 1, "milliseconds": TIMES}
        return {"id": self.active, "previous": before, **counts}


class _Http(ThreadingHTTPServer):
    request_queue_size = 128  # A trial opens all its connections at once.

    def handle_error(self, *_: object) -> None:
        """Clients that go away are part of the tests."""


def _handler(server: FakeVllm) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _answer(self) -> None:
            length = int(self.headers.get("content-length", 0))
            body = json.loads(self.rfile.read(length)) if length else None
            status, content = server.answer(self.command, self.path, body, self.headers.get("authorization"))
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PUT = do_POST = _answer  # noqa: N815 - the names that the base class calls

        def log_message(self, *_: object) -> None:
            pass

    return Handler
