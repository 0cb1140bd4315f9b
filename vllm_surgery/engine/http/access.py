# SPDX-License-Identifier: Apache-2.0
"""Access control of swaps over HTTP.

Where the server asks for an API key, vLLM has checked it before a request comes here, and whoever has it may. Where it
doesn't, only this machine may, and of its browsers only pages that this server itself gave out.
"""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from vllm_surgery.errors import SurgeryError

if TYPE_CHECKING:
    from collections.abc import Sequence

KEY_VARIABLE = "VLLM_API_KEY"

# A proxy on this machine makes everybody look local, and a proxy that is trusted too much lets a client say that it is.
_PROXY_HEADERS = frozenset({"forwarded", "via", "x-real-ip", "true-client-ip", "cf-connecting-ip"})
_PROXY_PREFIX = "x-forwarded-"

_REMEDY = "give the server an --api-key, or set allow_remote_swaps"


class ForbiddenError(SurgeryError):
    """Refusal of a caller who may not do this on this server."""


@dataclass(frozen=True)
class Caller:
    """Origin of a request.

    Attributes:
        host: the address of the other end of the connection, as far as the web server knows.
        headers: names in lower case, and values.
    """

    host: str | None
    headers: Sequence[tuple[str, str]]

    def values(self, name: str) -> list[str]:
        """All values of a header."""
        return [value for key, value in self.headers if key == name]

    @property
    def proxied(self) -> bool:
        """True if a proxy says that it passed the request on."""
        return any(name in _PROXY_HEADERS or name.startswith(_PROXY_PREFIX) for name, _ in self.headers)


@dataclass(frozen=True)
class Access:
    """Access rules of one server.

    Attributes:
        key_asked: whether vLLM lets nobody through without an API key.
        remote: whether other machines may swap where no key is asked for.
        unix_socket: whether the server listens on one, which no other machine can reach.
        origins: of pages whose scripts may swap, beside the server's own.
    """

    key_asked: bool
    remote: bool = False
    unix_socket: bool = False
    origins: frozenset[str] = frozenset()

    @classmethod
    def of(cls, args: Any, *, remote: bool) -> Access:
        """Rules that follow from vLLM's arguments and our setting."""
        keys = getattr(args, "api_key", None) or [os.environ.get(KEY_VARIABLE)]  # As vLLM itself decides it.
        return cls(
            key_asked=any(keys),
            remote=remote,
            unix_socket=bool(getattr(args, "uds", None)),
            origins=frozenset(getattr(args, "allowed_origins", None) or ()) - {"*"},
        )

    def check(self, caller: Caller) -> None:
        """Checks that the caller may swap.

        Raises:
            ForbiddenError: why not, and what would help.
        """
        if self.key_asked:
            return
        if not self.remote:
            if caller.proxied:
                raise ForbiddenError(f"no swaps through a proxy without an API key: {_REMEDY}")
            if not self._is_local(caller.host):
                raise ForbiddenError(f"no swaps from other machines without an API key: {_REMEDY}")
        for origin in caller.values("origin"):
            if origin not in self.origins and not _is_own(origin, caller.values("host")):
                raise ForbiddenError("no swaps by pages of another site without an API key")

    def _is_local(self, host: str | None) -> bool:
        if host is None:  # So says a Unix socket, but also a TCP connection whose other end has already gone.
            return self.unix_socket
        return _is_loopback(host)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_loopback(host: str) -> bool:
    address = _address(host)
    mapped = getattr(address, "ipv4_mapped", None)  # An IPv4 caller of a socket that takes both kinds.
    return address is not None and bool((mapped or address).is_loopback)


def _is_own(origin: str, hosts: Sequence[str]) -> bool:
    """True for the origin of this server's own pages, under a name that no stranger's DNS can point here."""
    try:
        parts = urlsplit(origin)
        name = parts.hostname or ""
    except ValueError:
        return False
    return [parts.netloc.lower()] == [host.lower() for host in hosts] and (
        name == "localhost" or _address(name) is not None
    )
