# SPDX-License-Identifier: Apache-2.0
"""One server's address and API key, and HTTP failures as this package's errors. Needs httpx, which vLLM brings."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx

from vllm_surgery.errors import ServerError, ServerUnreachableError, SurgeryError, UsageError, check_key, one_line

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

CONNECT_SECONDS = 5.0


MOST_BYTES = 256 << 20
"""Of any answer: the longest, log-probabilities of a long text, have some ten megabytes."""


class _Bounded(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A stream of bytes that ends in an error where it goes on beyond a bound."""

    def __init__(self, stream: Any, url: str) -> None:
        self._stream, self._url, self._read = stream, url, 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._stream:
            yield self._counted(chunk)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            yield self._counted(chunk)

    def close(self) -> None:
        self._stream.close()

    async def aclose(self) -> None:
        await self._stream.aclose()

    def _counted(self, chunk: bytes) -> bytes:
        self._read += len(chunk)
        if self._read > MOST_BYTES:
            raise UsageError(f"{self._url}: answers with more than {MOST_BYTES >> 20} MiB, as no server does")
        return chunk


class Connection:
    """Base of the clients of one server.

    Attributes:
        url: as the user wrote it, such as ``http://localhost:8000``.
        api_key: the key that the server was started with, where it was.
        base: the address that paths are added to: `url` without a ``/v1`` at the end, as OpenAI's clients have it.
        headers: of every request.

    Raises:
        UsageError: no header can hold the key.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        check_key(api_key, "the API key")
        self.url, self.api_key = url, api_key
        self.base = url.rstrip("/").removesuffix("/v1")
        self.headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    def bound(self, response: httpx.Response) -> None:
        """A hook of httpx's clients: no more of an answer is read than answers have."""
        response.stream = _Bounded(response.stream, self.url)

    async def bound_async(self, response: httpx.Response) -> None:
        """The same for asynchronous clients."""
        self.bound(response)

    @contextmanager
    def network_errors(self) -> Iterator[None]:
        """Turns what httpx raises inside it into errors with the server's address.

        Raises:
            ServerUnreachableError: nothing answers there, or not in time, or the connection broke.
            UsageError: the address is none.
        """
        try:
            yield
        except httpx.TimeoutException:
            raise ServerUnreachableError(f"{self.url}: no answer in time") from None
        except (httpx.InvalidURL, httpx.UnsupportedProtocol, ValueError) as error:
            raise UsageError(f"{self.url}: {one_line(str(error))}") from None
        except httpx.HTTPError as error:
            reason = one_line(str(error)) or f"the connection broke ({type(error).__name__})"
            raise ServerUnreachableError(f"{self.url}: {reason}") from None

    def check(self, response: httpx.Response) -> None:
        """Raises the server's refusal, where `response` is one.

        Raises:
            UsageError: the server wants an API key, or another one.
            SurgeryError: what `refusal` makes of all others.
        """
        if response.status_code == httpx.codes.UNAUTHORIZED:
            raise UsageError(f"{self.url}: wants {'another' if self.api_key else 'an'} API key")
        if not response.is_success:
            raise self.refusal(response)

    def refusal(self, response: httpx.Response) -> SurgeryError:
        """The server's error in its own words, or by its status where it has none."""
        try:
            error = response.json()["error"]
            kind, said = str(error["type"]), f"the server refused: {error['message']}"
        except (ValueError, KeyError, TypeError):
            kind, said = "ServerError", f"the server answered {response.status_code} {response.reason_phrase}"
        return ServerError(response.status_code, kind, said)
