# SPDX-License-Identifier: Apache-2.0
"""Client for the patches and metrics of a running server. Needs httpx, which vLLM brings."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from vllm_surgery.client.connection import CONNECT_SECONDS, Connection
from vllm_surgery.client.protocol import (
    METRICS_PATH,
    PATCHES_PATH,
    STATE_PATH,
    SURGERY_KEY_HEADER,
    PatchListing,
    ServerState,
    SlotsReport,
    SwapReport,
)
from vllm_surgery.errors import PluginMissingError, SurgeryError, UsageError, check_key

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping, Sequence

    from vllm_surgery.client.protocol import SwapMode

MessageT = TypeVar("MessageT", bound=BaseModel)

MOST_BYTES = 64 << 20
"""Of an answer that is read. The largest is that of ``/metrics``, of a few megabytes."""

READ_SECONDS = 60.0
"""For an answer that only tells: an engine in the middle of a long step answers after it."""


@cache
def _tls() -> ssl.SSLContext:
    """What connections are checked by. Reading all certificates takes longer than most answers do."""
    return httpx.create_ssl_context()


class SurgeryClient(Connection):
    """Client of one server's routes for patches.

    Attributes:
        surgery_key: what changes ask for, where the server was started with one.
        change_seconds: how long to wait for a change; None: as long as it takes.

    Raises:
        UsageError: no header can hold a key.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        surgery_key: str | None = None,
        *,
        change_seconds: float | None = None,
    ) -> None:
        super().__init__(url, api_key)
        check_key(surgery_key, "the surgery key")
        self.surgery_key, self.change_seconds = surgery_key, change_seconds

    def state(self) -> ServerState:
        """The patches that are served, and what the server can do.

        Raises:
            ServerUnreachableError: nothing answers there.
            PluginMissingError: the server has no vllm-surgery.
            UsageError: something else answers there, or it wants another API key.
            ServerError: the server's refusal.
        """
        return self._ask("GET", STATE_PATH, ServerState)

    def patches(self) -> PatchListing:
        """The patches in the server's folders.

        Raises:
            SurgeryError: as with `state`.
        """
        return self._ask("GET", PATCHES_PATH, PatchListing)

    def swap(
        self, patches: Sequence[str | Mapping[str, Any]], *, mode: SwapMode = "keep", if_epoch: int | None = None
    ) -> SwapReport:
        """Makes the server serve with these patches and no others. Waits as long as it takes.

        Args:
            patches: names of the server's patches, or patches as plain data; none of them for the model as it is.
            mode: what becomes of running requests.
            if_epoch: refuse unless the server's epoch is this one.

        Raises:
            SurgeryError: as with `state`.
        """
        return self._swap({"patches": list(patches), "mode": mode}, if_epoch)

    def change_slots(
        self,
        fill: Sequence[str | Mapping[str, Any]] = (),
        *,
        free: Sequence[str] = (),
        default: str | Mapping[str, float] | None = None,
        if_epoch: int | None = None,
    ) -> SlotsReport:
        """Puts patches into slots, frees others and sets the default: all of it or nothing. No request waits.

        Args:
            fill: names of the server's patches, or patches as plain data, each into a slot of its own.
            free: names that are to be offered no more.
            default: what requests get that choose no patch: a name, or names with their shares.
            if_epoch: refuse unless the server's epoch is this one.

        Raises:
            UsageError, ServerError: as with `state`.
        """
        asked = {"fill": list(fill), "free": list(free), "default": default, "if_epoch": if_epoch}
        body = {key: value for key, value in asked.items() if value not in (None, [])}
        return self._ask("PUT", STATE_PATH, SlotsReport, body)

    def change(self, body: Mapping[str, Any]) -> SwapReport | SlotsReport:
        """Asks for any change that ``PUT /v1/surgery`` takes; waits as long as it takes.

        Args:
            body: see `vllm_surgery.client.protocol.SwapRequest`.

        Raises:
            UsageError, ServerError: as with `state`.
        """
        slots = {"fill", "free", "default"} & body.keys()
        if slots:
            return self._ask("PUT", STATE_PATH, SlotsReport, dict(body))
        return self._ask("PUT", STATE_PATH, SwapReport, dict(body))

    def undo(self, *, mode: SwapMode = "keep", if_epoch: int | None = None) -> SwapReport:
        """Takes the last change back. Waits as long as it takes.

        Args:
            mode: what becomes of running requests.
            if_epoch: refuse unless the server's epoch is this one: that which the change led to.

        Raises:
            UsageError, ServerError: as with `state`.
        """
        return self._swap({"undo": True, "mode": mode}, if_epoch)

    def promote(self, *, mode: SwapMode = "keep", if_epoch: int | None = None) -> SwapReport:
        """Writes the default into the weights; requests under it go on as they were. Waits as long as it takes.

        Args:
            mode: what becomes of running requests.
            if_epoch: refuse unless the server's epoch is this one.

        Raises:
            UsageError, ServerError: as with `state`.
        """
        return self._swap({"promote": True, "mode": mode}, if_epoch)

    def _swap(self, body: dict[str, Any], if_epoch: int | None) -> SwapReport:
        condition = {} if if_epoch is None else {"if_epoch": if_epoch}
        return self._ask("PUT", STATE_PATH, SwapReport, body | condition)

    def metrics(self) -> str:
        """The text of the server's ``/metrics``; `vllm_surgery.client.traffic` makes figures of it.

        Raises:
            SurgeryError: as with `state`.
        """
        return self._send("GET", METRICS_PATH).text

    def _ask(self, method: str, path: str, kind: type[MessageT], body: Any = None) -> MessageT:
        try:
            return kind.model_validate_json(self._send(method, path, body).content)
        except ValidationError:
            raise UsageError(f"{self.url}: answers, but not as vllm-surgery does") from None

    def _send(self, method: str, path: str, body: Any = None) -> httpx.Response:
        wait = READ_SECONDS if body is None else self.change_seconds
        timeout = httpx.Timeout(wait, connect=CONNECT_SECONDS)
        headers = dict(self.headers)
        if method == "PUT" and self.surgery_key:
            headers[SURGERY_KEY_HEADER] = self.surgery_key
        with self.network_errors():
            response = self._read(method, path, json=body, headers=headers, timeout=timeout)
        self.check(response)
        return response

    def _read(self, method: str, path: str, **options: Any) -> httpx.Response:
        """The whole answer, if it is no longer than answers are.

        Raises:
            UsageError: it is.
        """
        with httpx.stream(method, self.base + path, verify=_tls(), **options) as response:
            content = bytearray()
            for chunk in response.iter_bytes(1 << 16):
                content += chunk
                if len(content) > MOST_BYTES:
                    raise UsageError(f"{self.url}: answers with more than {MOST_BYTES >> 20} MiB, as no server does")
            plain = {"content-type": response.headers.get("content-type", "")}
            return httpx.Response(response.status_code, headers=plain, content=bytes(content), request=response.request)

    def refusal(self, response: httpx.Response) -> SurgeryError:
        """As `Connection.refusal`, and the error of a server without the plugin."""
        if response.status_code in {httpx.codes.NOT_FOUND, httpx.codes.METHOD_NOT_ALLOWED}:
            how = "start it with `vllm-surgery serve`, or name vllm_surgery in VLLM_PLUGINS"
            return PluginMissingError(f"{self.url}: has no vllm-surgery: {how}")
        return super().refusal(response)
