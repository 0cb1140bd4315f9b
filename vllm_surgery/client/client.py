# SPDX-License-Identifier: Apache-2.0
"""Talking to a running server. Needs httpx, which vLLM brings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from vllm_surgery.client.protocol import METRICS_PATH, PATCHES_PATH, STATE_PATH, PatchListing, ServerState, SwapReport
from vllm_surgery.errors import ServerError, UsageError, one_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vllm_surgery.client.protocol import SwapMode

MessageT = TypeVar("MessageT", bound=BaseModel)

CONNECT_SECONDS = 5.0
READ_SECONDS = 60.0
"""For an answer that only tells: an engine in the middle of a long step answers after it."""

NO_PLUGIN = "has no vllm-surgery: start it with `vllm-surgery serve`, or name vllm_surgery in VLLM_PLUGINS"


@dataclass(frozen=True)
class SurgeryClient:
    """One server.

    Attributes:
        url: where it is, such as ``http://localhost:8000``. A ``/v1`` at the end, as for OpenAI's clients, may stay.
        api_key: what it was started with, where it was.
    """

    url: str
    api_key: str | None = None

    def state(self) -> ServerState:
        """What is served, and what can be done.

        Raises:
            UsageError: nothing that answers there is a server of this kind, or it wants another API key.
            ServerError: the server's refusal.
        """
        return self._ask("GET", STATE_PATH, ServerState)

    def patches(self) -> PatchListing:
        """What lies in the server's patch folders.

        Raises:
            UsageError, ServerError: as with `state`.
        """
        return self._ask("GET", PATCHES_PATH, PatchListing)

    def swap(
        self, patches: Sequence[str | Mapping[str, Any]], *, mode: SwapMode = "keep", if_epoch: int | None = None
    ) -> SwapReport:
        """From now on serves with these patches and no others. Waits as long as it takes.

        Args:
            patches: names of the server's patches, or patches as plain data; none of them for the model as it is.
            mode: what becomes of running requests.
            if_epoch: refuse unless the server's epoch is this one.

        Raises:
            UsageError, ServerError: as with `state`.
        """
        body: dict[str, Any] = {"patches": list(patches), "mode": mode}
        if if_epoch is not None:
            body["if_epoch"] = if_epoch
        return self._ask("PUT", STATE_PATH, SwapReport, body)

    def metrics(self) -> str:
        """The text of the server's ``/metrics``; `vllm_surgery.client.traffic` makes figures of it.

        Raises:
            UsageError, ServerError: as with `state`.
        """
        response = self._send("GET", METRICS_PATH)
        self._check(response)
        return response.text

    def _ask(self, method: str, path: str, kind: type[MessageT], body: Any = None) -> MessageT:
        response = self._send(method, path, body)
        self._check(response)
        try:
            return kind.model_validate_json(response.content)
        except ValidationError:
            raise UsageError(f"{self.url}: answers, but not as vllm-surgery does") from None

    def _send(self, method: str, path: str, body: Any = None) -> httpx.Response:
        timeout = httpx.Timeout(READ_SECONDS if body is None else None, connect=CONNECT_SECONDS)
        base = self.url.rstrip("/").removesuffix("/v1")
        try:
            return httpx.request(method, base + path, json=body, headers=self._headers(), timeout=timeout)
        except httpx.TimeoutException:
            raise UsageError(f"{self.url}: no answer in time") from None
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise UsageError(f"{self.url}: {one_line(str(error)) or type(error).__name__}") from None

    def _headers(self) -> dict[str, str]:
        if not self.api_key:
            return {}
        if not (self.api_key.isascii() and self.api_key.isprintable()):
            raise UsageError("the API key holds a character that no header can hold")
        return {"Authorization": f"Bearer {self.api_key}"}

    def _check(self, response: httpx.Response) -> None:
        if response.is_success:
            return
        if response.status_code == httpx.codes.UNAUTHORIZED:
            wrong = "wants another API key" if self.api_key else "wants an API key"
            raise UsageError(f"{self.url}: {wrong}")
        if response.status_code in {httpx.codes.NOT_FOUND, httpx.codes.METHOD_NOT_ALLOWED}:
            raise UsageError(f"{self.url}: {NO_PLUGIN}")
        raise _refusal(response)


def _refusal(response: httpx.Response) -> ServerError:
    """The server's error in its own words, or as many as there are."""
    try:
        error = response.json()["error"]
        return ServerError(response.status_code, str(error["type"]), f"the server refused: {error['message']}")
    except (ValueError, KeyError, TypeError):
        return ServerError(
            response.status_code, "ServerError", f"the server answered {response.status_code} {response.reason_phrase}"
        )
