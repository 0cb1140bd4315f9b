# SPDX-License-Identifier: Apache-2.0
"""A server on loopback that speaks as much of the Hugging Face Hub's protocol as fetching and publishing need."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator

    Reply: TypeAlias = tuple[int, dict[str, str], bytes]
    """Status, headers and body."""

COMMIT = "0123456789abcdef0123456789abcdef01234567"


AGENTS = "/api/agent-harnesses"
"""What huggingface_hub asks for, without a token, where it takes itself to be run by an agent."""


def blob_hash(content: bytes) -> str:
    """git's hash of a file."""
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content), usedforsecurity=False).hexdigest()


@dataclass
class Hub:
    """One repository, and what was asked of it.

    Attributes:
        files: by name; the same at every revision.
        commit: that every revision is.
        asked: method and path of each request, in order.
        tokens: the authorization of each.
        answer: what answers a path in place of the files; gives status, headers and body, or None.
    """

    url: str = ""
    repository: str = "org/repo"
    files: dict[str, bytes] = field(default_factory=dict)
    commit: str = COMMIT
    asked: list[tuple[str, str]] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    commits: list[dict[str, Any]] = field(default_factory=list)
    created: list[dict[str, Any]] = field(default_factory=list)
    answer: Callable[[str], Reply | None] = lambda _path: None

    def reply(self, path: str, body: bytes) -> Reply:
        if (given := self.answer(path)) is not None:
            return given
        place = f"/api/models/{self.repository}"
        known = {
            f"/{self.repository}/resolve/": lambda: self._file(unquote(path.split("/", 5)[5])),
            f"{place}/revision/": self._info,
            f"{place}/tree/": self._tree,
            f"{place}/preupload/": lambda: self._modes(body),
            f"{place}/commit/": lambda: self._take(body),
            "/api/validate-yaml": lambda: (200, {}, b'{"errors": [], "warnings": []}'),
            "/api/repos/create": lambda: self._create(body),
        }
        answer = next((answer for start, answer in known.items() if path.startswith(start)), None)
        return (404, {"X-Error-Code": "EntryNotFound"}, b"{}") if answer is None else answer()

    def _info(self) -> Reply:
        told = {"id": self.repository, "sha": self.commit, "siblings": [{"rfilename": name} for name in self.files]}
        return 200, {}, json.dumps(told).encode()

    def _tree(self) -> Reply:
        files = [
            {"type": "file", "path": name, "size": len(content), "oid": blob_hash(content)}
            for name, content in self.files.items()
        ]
        return 200, {}, json.dumps(files).encode()

    def _create(self, body: bytes) -> Reply:
        self.created.append(json.loads(body))
        return 200, {}, json.dumps({"url": f"{self.url}/{self.repository}"}).encode()

    def _modes(self, body: bytes) -> Reply:
        files = [
            {"path": item["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
            for item in json.loads(body)["files"]
        ]
        return 200, {}, json.dumps({"files": files}).encode()

    def _file(self, name: str) -> Reply:
        if name not in self.files:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": self.commit}, b"Entry not found"
        content = self.files[name]
        return 200, {"ETag": f'"{blob_hash(content)}"', "X-Repo-Commit": self.commit}, content

    def _take(self, body: bytes) -> Reply:
        lines = [json.loads(line) for line in body.splitlines()]
        self.commits.append(lines[0]["value"])
        for line in lines[1:]:
            assert line["key"] == "file"
            self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        self.commit = "f" * 40
        told = {"commitUrl": f"{self.url}/{self.repository}/commit/{self.commit}", "commitOid": self.commit}
        return 200, {}, json.dumps({"success": True, **told}).encode()


@contextmanager
def serving(hub: Hub, context: ssl.SSLContext | None = None) -> Iterator[Hub]:
    """Serves a repository for as long as the block lasts, over TLS where there is a context."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = urlsplit(self.path).path
            hub.asked.append((self.command, path))
            if self.path != AGENTS:
                hub.tokens.append(self.headers.get("Authorization"))
            status, headers, content = hub.reply(path, body)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_POST = _answer  # noqa: N815 - the library's names

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    hub.url = f"{'http' if context is None else 'https'}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
