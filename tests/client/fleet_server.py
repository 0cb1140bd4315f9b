# SPDX-License-Identifier: Apache-2.0
"""A stand-in for one server of many: it keeps to the protocol, and fails where it is told to."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

from tests.client.test_client import STATE, TIMES

Failure = Literal["refuses", "undone", "breaks off before", "breaks off after", "dies before", "dies after", "hangs"]


class FleetServer:
    """Serves patch sets by name: in its weights, or, with slots, as its default.

    Attributes:
        served: ids of what was served, the last one now.
        epoch: of the last change.
        fails: what becomes of a step: ``check``, ``apply`` or ``undo``.
        steps: that it was asked for.
        slots: the default's shares; None without slots.
        scrape: the text of ``/metrics``.
        on_change: called after each change.
    """

    def __init__(self, *, slots: bool = False, epoch: int = 3, active: str = "old@1") -> None:
        self.served, self.epoch = [active], epoch
        self.fails: dict[str, Failure] = {}
        self.steps: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.slots: dict[str, float] | None = {active.partition("@")[0]: 1.0} if slots else None
        self._before: tuple[str, dict[str, float] | None] | None = None
        self.more: dict[str, Any] = {}
        self.scrape = ""
        self.lock, self.free = threading.Lock(), threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._stopped = False
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def active(self) -> str:
        return self.served[-1]

    def stop(self) -> None:
        """From now on nothing answers."""
        self.free.set()
        if not self._stopped:
            self._stopped = True
            self._http.shutdown()
            self._http.server_close()

    def state(self) -> dict[str, Any]:
        told = {"active": self.active, "epoch": self.epoch, "desired": {"id": self.active, "error": None}}
        if self.slots is None:
            return STATE | told | self.more
        patches = [
            {"name": name, "id": f"{name}@1", "units": 1, "users": 0, "leaving": False}
            for name in self.slots
            if name != "none"
        ]
        return (
            STATE
            | told
            | {"slots": {"count": 4, "default": self.slots, "patches": patches, "unpatched": 0}}
            | self.more
        )

    def put(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
        """Status and answer; None where the connection ends without one."""
        step = "check" if body.get("check") else "undo" if body.get("undo") else "apply"
        self.steps.append(step)
        self.bodies.append(body)
        fails = self.fails.get(step)
        if fails == "hangs":
            self.free.wait()
            return None
        if fails in {"breaks off before", "dies before"}:
            return None
        if body.get("if_epoch") not in {None, self.epoch}:
            return _error(409, "ConflictError", f"the epoch is {self.epoch}, not {body['if_epoch']}")
        if fails == "refuses":
            return _error(422, "MismatchError", "it is for another model")
        if fails == "undone":
            return _error(500, "SwapFailedError", "rank 1 failed; it was undone")
        report = self._change(step, body)
        return None if fails in {"breaks off after", "dies after"} else (200, report)

    def _change(self, step: str, body: dict[str, Any]) -> dict[str, Any]:
        previous, shares = self.active, self.slots
        if step == "undo":
            assert self._before is not None
            active, after = self._before
        else:
            active, after = self._wanted(body)
        if step != "check" and (active, after) != (previous, shares):
            self._before, self.slots, self.epoch = (previous, shares), after, self.epoch + 1
            self.served.append(active)
        if "fill" in body or "default" in body:
            return {"epoch": self.epoch, "slots": self.state()["slots"], "milliseconds": {"fill": 1.0, "total": 2.0}}
        told = {"units": 1, "tensors": 1, "modules": 1, "milliseconds": TIMES}
        return {"id": active, "previous": previous, "epoch": self.epoch, **told}

    def _wanted(self, body: dict[str, Any]) -> tuple[str, dict[str, float] | None]:
        if "default" in body:
            names = [f"{name}@1" if name != "none" else name for name in body["default"]]
            return names[0] if len(names) == 1 else "shares", body["default"]
        names = [item if isinstance(item, str) else item["name"] for item in body.get("patches", [])]
        name = "+".join(names) or "none"
        active = "none" if name == "none" else f"{name}@1"
        if self.slots is None:
            return active, None
        if "share" not in body:
            return active, {name: 1.0}
        rest = {key: value * (1 - body["share"]) for key, value in self.slots.items()}
        return "shares", {name: body["share"], **rest}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                content = server.scrape if self.path == "/metrics" else json.dumps(server.state())
                self._say(200, content)

            def do_PUT(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                answer = server.put(body)
                if answer is not None:
                    self._say(answer[0], json.dumps(answer[1]))
                    return
                self.close_connection = True
                if any(fails.startswith("dies") for fails in server.fails.values()):
                    threading.Thread(target=server.stop).start()

            def _say(self, status: int, content: str) -> None:
                data = content.encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def _error(status: int, kind: str, message: str) -> tuple[int, dict[str, Any]]:
    return status, {"error": {"message": message, "type": kind, "param": None, "code": status}}
