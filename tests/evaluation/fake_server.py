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
        slots: how many it has.
        filled: what is in them, by name.
        filled_in_all: names of everything that ever was.
        refuses_to_fill: digests.
        folder: patches that go by a name.
        root: where its model was loaded from.
        loop: the tokens of an answer that loops.
        reply: the tokens that it cuts a reference reply into.
    """

    def __init__(self, key: str | None = None) -> None:
        self.active, self.epoch, self.key = NO_PATCH, 0, key
        self.refuses: dict[str, tuple[int, str, str]] = {}
        self.asked: list[dict[str, Any]] = []
        self.swaps: list[str] = []
        self.stop_after: int | None = None
        self.can_swap, self.plugin, self.context = True, True, 4096
        self.on_chat: Any = None
        self.slots = 0
        self.on_loop: str | None = None
        self.filled: dict[str, Patch] = {}
        self.filled_in_all: list[str] = []
        self.refuses_to_fill: set[str] = set()
        self.folder: dict[str, Patch] = {}
        self.root, self.loop, self.reply = "fake", LOOP, [4, 5, 6, 7]
        self.users: dict[str, int] = {}
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
            return _error(status, kind, message)
        routes = {
            "/v1/models": lambda: {"data": [{"id": "fake", "root": self.root, "max_model_len": self.context}]},
            "/version": lambda: {"version": "0.0"},
            "/tokenize": lambda: {"tokens": [1, 2, 3] if "messages" in body else self.reply},
            "/v1/chat/completions": lambda: self._chat(body),
            "/v1/completions": lambda: self._complete(body),
        }
        if self.plugin:
            routes["/v1/surgery"] = (lambda: self._swap(body)) if method == "PUT" else self._state
            routes["/v1/surgery/patches"] = lambda: {
                "patches": [{"name": name, "id": patch.id} for name, patch in self.folder.items()]
            }
        if method == "PUT" and self.slots and (refusal := self._unfit(body)):
            return refusal
        if path not in routes:
            return 404, {"detail": "Not Found"}
        if path == "/v1/chat/completions" and self.stop_after is not None and len(self.asked) >= self.stop_after:
            return 503, {"error": {"message": "going down", "type": "ServiceUnavailable", "code": 503}}
        return 200, routes[path]()

    def served(self, body: dict[str, Any]) -> str:
        """The id of the patch that a request gets."""
        name = body.get("vllm_xargs", {}).get("patch")
        if name is None or name == NO_PATCH:
            return self.active if name is None else NO_PATCH
        return self.filled[name].id

    def headers(self, path: str, body: Any) -> dict[str, str]:
        """What a server with slots says of the patch of an answer."""
        return {"X-Surgery-Patch": self.served(body)} if self.slots and "completions" in path else {}

    def loops(self, prompt: str, seed: int, served: str) -> bool:
        """Whether an answer loops: two of three without a patch, one of three with a patch called `cure`."""
        share = 1 if served.startswith("cure@") else 2
        return "list" in prompt.lower() and (len(prompt) + seed) % 3 < share

    def _chat(self, body: dict[str, Any]) -> dict[str, Any]:
        return self._answered(body, body["messages"][0]["content"])

    def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """The log-probabilities of a prompt in tokens, or the text that follows on one in words."""
        if not isinstance(body["prompt"], str):
            return {"choices": [{"prompt_logprobs": self._logprobs(body)}]}
        (choice,) = self._answered(body, body["prompt"])["choices"]
        return {"choices": [{**choice, "text": choice.pop("message")["content"]}]}

    def _answered(self, body: dict[str, Any], prompt: str) -> dict[str, Any]:
        self.asked.append(body)
        if self.on_chat is not None:
            self.on_chat()
        loops = self.loops(prompt, body.get("seed", 0), self.served(body))
        tokens = (self.loop if loops else SOUND)[: body["max_tokens"]]
        choice = {
            "message": {"content": TABLE.text(tokens)},
            "token_ids": tokens,
            "finish_reason": "length" if loops else "stop",
        }
        return {"choices": [choice]}

    def _logprobs(self, body: dict[str, Any]) -> list[Any]:
        logprob = -0.5 if self.served(body) == NO_PATCH else -0.6
        return [None, *({str(token): {"logprob": logprob}, "999": {"logprob": -2.0}} for token in body["prompt"][1:])]

    def _state(self) -> dict[str, Any]:
        patches = [] if self.active == NO_PATCH else [{"name": self.active.partition("@")[0], "id": self.active}]
        cannot = None if self.can_swap else "the model is quantised"
        changed = {"active": self.active, "epoch": self.epoch, "patches": patches, "can_swap": self.can_swap}
        return {
            **STATE,
            **changed,
            "tensors": 0,
            "cannot_swap_reason": cannot,
            "slots": self._slots(),
            "on_loop": self.on_loop,
        }

    def _slots(self) -> dict[str, Any] | None:
        patches = [
            {"name": name, "id": patch.id, "units": 1, "users": self.users.get(name, 0), "leaving": False}
            for name, patch in self.filled.items()
        ]
        state = {"count": self.slots, "default": {"none": 1.0}, "patches": patches, "unpatched": 0}
        return state if self.slots else None

    def _unfit(self, body: dict[str, Any]) -> tuple[int, Any] | None:
        """The refusal of a fill."""
        wanted = [self._resolved(patch) for patch in body.get("fill", [])]
        refused = [patch for patch in wanted if patch.digest in self.refuses_to_fill]
        if refused:
            return _error(501, "CannotSwapError", "no rank has a place for the gains")
        if len(self.filled) + len(wanted) > self.slots:
            return _error(409, "ConflictError", f"all {self.slots} slots are in use; free a patch that isn't needed")
        return None

    def _resolved(self, patch: str | dict[str, Any]) -> Patch:
        return self.folder[patch] if isinstance(patch, str) else Patch.from_data(patch)

    def _swap(self, body: dict[str, Any]) -> dict[str, Any]:
        if "patches" not in body:
            for patch in map(self._resolved, body.get("fill", [])):
                self.filled[patch.name] = patch
                self.filled_in_all.append(patch.name)
            for name in body.get("free", []):
                del self.filled[name]
            self.epoch += 1
            return {"epoch": self.epoch, "slots": self._slots(), "milliseconds": {"fill": 1.0, "total": 1.0}}
        before = self.active
        members = [SourcedPatch("p", self._resolved(patch)) for patch in body["patches"]]
        self.active, self.epoch = PatchSet(tuple(members)).id, self.epoch + 1
        self.swaps.append(self.active)
        counts = {"epoch": self.epoch, "units": 1, "tensors": 1, "modules": 1, "milliseconds": TIMES}
        return {"id": self.active, "previous": before, **counts}


def _error(status: int, kind: str, message: str) -> tuple[int, Any]:
    return status, {"error": {"message": message, "type": kind, "param": None, "code": status}}


def _pieces(choice: dict[str, Any]) -> list[str]:
    """A choice as the events of a stream: who speaks, three tokens at a time, why it ended, and what was used."""
    tokens = choice["token_ids"]
    made = [tokens[place : place + 3] for place in range(0, len(tokens), 3)]
    said = [{"delta": {"content": TABLE.text(few)}, "token_ids": few, "finish_reason": None} for few in made]
    ended = {"delta": {}, "finish_reason": choice["finish_reason"], "token_ids": None}
    begun = {"delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    return [json.dumps({"choices": [piece]}) for piece in (begun, *said, ended)] + ['{"choices": []}']


def _event(data: str) -> bytes:
    return f"data: {data}\n\n".encode()


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
            if status == 200 and body and body.get("stream"):
                data = b"".join(map(_event, [*_pieces(content["choices"][0]), "[DONE]"]))
            self.send_response(status)
            for name, value in server.headers(self.path, body).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PUT = do_POST = _answer  # noqa: N815 - the names that the base class calls

        def log_message(self, *_: object) -> None:
            pass

    return Handler
