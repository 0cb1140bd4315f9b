# SPDX-License-Identifier: Apache-2.0
"""Saying in an answer's headers which patch makes it, streamed answers too: by then the choice is made.

Where requests choose none, it is the patch that the weights hold when the answer begins to be sent.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from vllm_surgery.client.protocol import CHOICE_HEADER

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from vllm_surgery.engine.requests.choice import Offered

    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

HEADER = CHOICE_HEADER.encode()


@dataclass
class _Exchange:
    """One HTTP request and its answer. It is shared by all tasks that work on it.

    Attributes:
        chosen: the patch that was chosen for it, or drawn.
        model: as the client named it, where that name chose the patch.
        request_id: that the client gave it, or that a proxy did.
    """

    chosen: Offered | None = None
    model: str | None = None
    request_id: str | None = None


_EXCHANGE: ContextVar[_Exchange | None] = ContextVar("vllm_surgery_exchange", default=None)


def note_choice(chosen: Offered) -> None:
    """Says which patch the answer is by, if an HTTP request is being worked on."""
    exchange = _EXCHANGE.get()
    if exchange is not None:
        exchange.chosen = chosen


def noted_choice() -> Offered | None:
    """The patch of the HTTP request that is being worked on, if it has one: what it asks of the engine has it too."""
    exchange = _EXCHANGE.get()
    return None if exchange is None else exchange.chosen


def note_model(name: str) -> None:
    """Says how the client named model and patch."""
    exchange = _EXCHANGE.get()
    if exchange is not None:
        exchange.model = name


def noted_model() -> str | None:
    """The model as the client named it, where that name chose a patch."""
    exchange = _EXCHANGE.get()
    return None if exchange is None else exchange.model


def given_request_id() -> str | None:
    """The id that the client gave its request in a header."""
    exchange = _EXCHANGE.get()
    return None if exchange is None else exchange.request_id


class PatchHeader:
    """ASGI middleware that adds the header.

    Args:
        app: the application.
        served: gives the id of the patch in the weights, where requests choose none. Every successful answer to a
            ``POST`` is by it: that is how vLLM is asked to compute anything.
    """

    def __init__(self, app: Any, served: Callable[[], str] | None = None) -> None:
        self._app, self._served = app, served

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Works on one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(request_id=_header(scope, b"x-request-id"))

        async def telling(message: Message) -> None:
            if message["type"] == "http.response.start" and (patch := self._patch(scope, exchange, message)):
                message["headers"] = [*message.get("headers", ()), (HEADER, patch.encode("latin-1"))]
            await send(message)

        token = _EXCHANGE.set(exchange)
        try:
            await self._app(scope, receive, telling)
        finally:
            _EXCHANGE.reset(token)

    def _patch(self, scope: Message, exchange: _Exchange, start: Message) -> str | None:
        """The patch of an answer that begins; None where there is none."""
        if exchange.chosen is not None:
            return exchange.chosen.id
        if self._served is None or scope["method"] != "POST" or start["status"] >= HTTPStatus.BAD_REQUEST:
            return None
        return self._served()


def _header(scope: Message, name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)
