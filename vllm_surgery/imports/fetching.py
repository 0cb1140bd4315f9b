# SPDX-License-Identifier: Apache-2.0
"""Fetching one small file over HTTP: bounded in size and time, and never by way of another scheme."""

from __future__ import annotations

import ssl
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import HTTPException
from typing import IO, TYPE_CHECKING
from urllib.parse import urlsplit

from vllm_surgery.errors import UsageError, one_line

if TYPE_CHECKING:
    from collections.abc import Mapping
    from email.message import Message
    from http.client import HTTPMessage

SECONDS_FOR_ALL = 60.0
"""For connecting, all redirects and the whole file."""

_SECONDS_FOR_ANSWER = 15.0
_MOST_REDIRECTS = 5
_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True)
class Fetched:
    """A file that was fetched.

    Attributes:
        content: its bytes.
        headers: of the answers on the way, later ones over earlier ones; names in lower case.
    """

    content: bytes
    headers: dict[str, str] = field(default_factory=dict)


class UnreachableError(UsageError):
    """An address from which nothing came, for a reason that may pass."""


class NotThereError(UsageError):
    """An address at which a server says that there is nothing."""


def fetch(address: str, most: int, headers: Mapping[str, str] | None = None) -> Fetched:
    """The file at an address.

    Args:
        address: with the scheme ``http`` or ``https``.
        most: bytes that it may have.
        headers: of the request; they are sent to no other host.

    Raises:
        UnreachableError: nothing came, or not in time.
        NotThereError: there is nothing.
        UsageError: it is refused, is too long, or would come by another scheme.
    """
    outcome: list[Fetched | UsageError] = []

    def work() -> None:
        try:
            outcome.append(_fetch(address, most, headers or {}))
        except UsageError as error:
            outcome.append(error)

    # A server that sends a byte now and then keeps every single wait short; a thread can be left behind.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(SECONDS_FOR_ALL)
    if not outcome:
        raise UnreachableError(f"{address}: not there within {SECONDS_FOR_ALL:g} seconds")
    if isinstance(outcome[0], UsageError):
        raise outcome[0]
    return outcome[0]


def _fetch(address: str, most: int, headers: Mapping[str, str]) -> Fetched:
    try:
        return _opened(address, most, headers)
    except urllib.error.HTTPError as error:
        with error:
            raise _refused(address, error) from None
    except (urllib.error.URLError, HTTPException, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        told = one_line(str(reason) or type(reason).__name__, 200)
        raise UnreachableError(f"{address}: can't be fetched: {told}") from None


def _opened(address: str, most: int, headers: Mapping[str, str]) -> Fetched:
    redirects = _Redirects(address)
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=ssl.create_default_context()),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
        redirects,
    ):
        opener.add_handler(handler)
    # The opener knows no scheme but these two.
    request = urllib.request.Request(address, headers={"User-Agent": "vllm-surgery", **headers})  # noqa: S310
    with opener.open(request, timeout=_SECONDS_FOR_ANSWER) as response:
        return Fetched(_bounded(response, most, address), {**redirects.headers, **_lower(response.headers)})


def _refused(address: str, error: urllib.error.HTTPError) -> UsageError:
    told = f"{address}: the server says {error.code} {one_line(str(error.reason), 100)}"
    if error.code == HTTPStatus.NOT_FOUND:
        return NotThereError(told)
    passing = error.code == HTTPStatus.TOO_MANY_REQUESTS or error.code >= HTTPStatus.INTERNAL_SERVER_ERROR
    return UnreachableError(told) if passing else UsageError(told)


def _bounded(response: IO[bytes], most: int, address: str) -> bytes:
    content = bytearray()
    while chunk := response.read(min(_CHUNK_BYTES, most + 1 - len(content))):
        content += chunk
        if len(content) > most:
            raise UsageError(f"{address}: is longer than {most} bytes")
    return bytes(content)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects within a scheme, and takes what was meant for one host to no other."""

    max_redirections = _MOST_REDIRECTS

    def __init__(self, address: str) -> None:
        self._scheme = urlsplit(address).scheme
        self.headers: dict[str, str] = {}

    def redirect_request(  # noqa: PLR0913, PLR0917 - urllib's
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        """The request that follows, or a refusal."""
        target = urlsplit(newurl)
        if target.scheme != self._scheme:
            fp.close()
            raise UsageError(f"{req.full_url}: leads to {one_line(newurl, 100)}, which is not {self._scheme}")
        self.headers |= _lower(headers)
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None and target.netloc != urlsplit(req.full_url).netloc:
            for name in list(following.headers):
                if name.lower() != "user-agent":
                    following.remove_header(name)
        return following


def _lower(headers: Message) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}
