# SPDX-License-Identifier: Apache-2.0
"""Access control of our routes.

- Reading asks for the server's API key, where there is one. vLLM asks for it too, but by the path's text, which a
  root path can change.
- Changing asks for the surgery key; where there is none for the API key; where there is neither, only callers on this
  machine may, and only of a server that no other machine can reach.
- Whatever the keys, a page of another site may not change anything.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
from dataclasses import dataclass
from secrets import compare_digest
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from vllm_surgery.client.protocol import SURGERY_KEY_HEADER, SURGERY_KEY_VARIABLE
from vllm_surgery.errors import SurgeryError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

KEY_VARIABLE = "VLLM_API_KEY"

# A proxy on this machine makes everybody look local. Many say nothing, which is why `Host` has to be local too.
_PROXY_HEADERS = frozenset({"forwarded", "via", "x-real-ip", "true-client-ip", "cf-connecting-ip"})
_PROXY_PREFIX = "x-forwarded-"

_GUARDED = "/v1/"

_REMEDY = "give the server a --surgery-key or an --api-key"


class ForbiddenError(SurgeryError):
    """Refusal of a caller who may not do this on this server."""


class UnauthorizedError(SurgeryError):
    """Refusal of a caller without the server's API key."""


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
    def bearers(self) -> list[str]:
        """Keys in ``Authorization`` headers."""
        pairs = [value.partition(" ") for value in self.values("authorization")]
        return [key for scheme, _, key in pairs if scheme.lower() == "bearer"]

    @property
    def proxied(self) -> bool:
        """True if a proxy says that it passed the request on."""
        return any(name in _PROXY_HEADERS or name.startswith(_PROXY_PREFIX) for name, _ in self.headers)

    @property
    def names_this_machine(self) -> bool:
        """True if the one ``Host`` is this machine, by a name that no stranger's DNS can point here."""
        hosts = self.values("host")
        return len(hosts) == 1 and is_loopback_name(_host_name(hosts[0]))


@dataclass(frozen=True)
class Access:
    """Access rules of one server.

    Attributes:
        api_keys: what vLLM lets nobody through without; none: it lets everybody.
        surgery_keys: what changes ask for in place of them.
        changes: whether anybody may change anything over HTTP.
        remote: whether other machines may where no key is asked for.
        loopback: whether the server listens on this machine's own address alone.
        unix_socket: whether it listens on a Unix socket, which no other machine can reach.
        origins: of pages whose scripts may make changes, beside the server's own.
    """

    api_keys: tuple[str, ...] = ()
    surgery_keys: tuple[str, ...] = ()
    changes: bool = True
    remote: bool = False
    loopback: bool = False
    unix_socket: bool = False
    origins: frozenset[str] = frozenset()

    @classmethod
    def of(cls, args: Any, *, remote: bool, changes: bool = True) -> Access:
        """Rules that follow from vLLM's arguments, the environment and our settings."""
        keys = getattr(args, "api_key", None) or [os.environ.get(KEY_VARIABLE)]  # As vLLM itself decides it.
        return cls(
            api_keys=tuple(filter(None, keys)),
            surgery_keys=tuple(filter(None, [os.environ.get(SURGERY_KEY_VARIABLE)])),
            changes=changes,
            remote=remote,
            loopback=is_loopback_name(getattr(args, "host", None) or ""),
            unix_socket=bool(getattr(args, "uds", None)),
            origins=frozenset(getattr(args, "allowed_origins", None) or ()) - {"*"},
        )

    def check_read(self, caller: Caller) -> None:
        """Checks that the caller may see what is served.

        Raises:
            UnauthorizedError: the server has an API key, and the caller hasn't.
        """
        if self.api_keys and not _any_matches(caller.bearers, {*self.api_keys, *self.surgery_keys}):
            raise UnauthorizedError("this server wants its API key")

    def check(self, caller: Caller) -> None:
        """Checks that the caller may change what is served.

        Raises:
            UnauthorizedError: the server has an API key, and the caller hasn't.
            ForbiddenError: why not, and what would help.
        """
        if not self.changes:
            raise ForbiddenError(CHANGES_OFF)
        self._check_origins(caller)
        if self.surgery_keys:
            if not _any_matches([*caller.values(SURGERY_KEY_HEADER.lower()), *caller.bearers], self.surgery_keys):
                raise ForbiddenError(f"this server wants its surgery key, in {SURGERY_KEY_HEADER}")
        elif self.api_keys:
            self.check_read(caller)
        elif not self.remote:
            self._check_local(caller)

    def _check_origins(self, caller: Caller) -> None:
        for origin in caller.values("origin"):
            if origin in self.origins or _is_own(origin, caller.values("host"), any_name=self._asks_for_key):
                continue
            raise ForbiddenError("no changes by pages of another site; --allowed-origins can name one")

    @property
    def _asks_for_key(self) -> bool:
        return bool(self.surgery_keys or self.api_keys)

    def _check_local(self, caller: Caller) -> None:
        if caller.proxied:
            raise ForbiddenError(f"no changes through a proxy without a key: {_REMEDY}")
        if self.unix_socket:
            return
        if not self.loopback:
            raise ForbiddenError(f"no changes without a key on a server that isn't bound to 127.0.0.1: {_REMEDY}")
        if not _is_loopback(caller.host or "") or not caller.names_this_machine:
            raise ForbiddenError(f"no changes from other machines without a key: {_REMEDY}")


CHANGES_OFF = "this server takes no changes over HTTP (allow_swaps is off)"


def check_root_path(root_path: str | None) -> None:
    """Refuses root paths that hide our routes from vLLM's check of API keys, which strips them from paths as text.

    Raises:
        UsageError: it is one of them.
    """
    if not root_path:
        return
    hides = _GUARDED.startswith(root_path) or root_path.startswith(_GUARDED)
    if hides or root_path.endswith("/") or not root_path.startswith("/"):
        raise UsageError(
            f"--root-path {root_path}: with this one vLLM's API key doesn't guard all routes; "
            "give one such as /api, without a slash at its end, that isn't the beginning of /v1"
        )


def _any_matches(given: Iterable[str], keys: Iterable[str]) -> bool:
    """Takes the same time whether and where they differ."""
    hashed = [_digest(key) for key in keys]
    return any([compare_digest(_digest(word), key) for word in given for key in hashed])  # noqa: C419 - each is compared


def _digest(word: str) -> bytes:
    return hashlib.sha256(word.encode("utf-8", "surrogateescape")).digest()


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_loopback(host: str) -> bool:
    address = _address(host)
    mapped = getattr(address, "ipv4_mapped", None)  # An IPv4 caller of a socket that takes both kinds.
    return address is not None and bool((mapped or address).is_loopback)


def is_loopback_name(name: str) -> bool:
    """True for this machine's own addresses and ``localhost``."""
    return name.lower() == "localhost" or _is_loopback(name)


def _host_name(netloc: str) -> str:
    """Host of a ``Host`` header, without the port; empty where it is none."""
    try:
        parts = urlsplit(f"//{netloc}")
        return (parts.hostname or "") if parts.netloc == netloc and "@" not in netloc else ""
    except ValueError:
        return ""


def _is_own(origin: str, hosts: Sequence[str], *, any_name: bool) -> bool:
    """True for the origin of this server's own pages.

    Args:
        origin: the header.
        hosts: the headers ``Host``.
        any_name: whether it may be under any name; else only under one that no stranger's DNS can point here.
    """
    try:
        parts = urlsplit(origin)
        name = parts.hostname or ""
    except ValueError:
        return False
    if not name or [parts.netloc.lower()] != [host.lower() for host in hosts]:
        return False
    return any_name or name == "localhost" or _address(name) is not None
