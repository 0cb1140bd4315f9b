# SPDX-License-Identifier: Apache-2.0
"""The addresses of several servers: as they were given, from a file, or those behind one name of a network."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from vllm_surgery.errors import UsageError, one_line
from vllm_surgery.regular_files import read_regular

if TYPE_CHECKING:
    from collections.abc import Iterable

DNS = "dns"
"""The scheme of a name behind which each address is a server, as with a headless service of Kubernetes."""

MOST_SERVERS = 512
"""Of one fleet. Each has a thread of its own while it is asked, and a line in every report."""

_MOST_BYTES = 1 << 16
_MOST_PORT = (1 << 16) - 1


def expand(given: Iterable[str]) -> list[str]:
    """URLs of servers; each ``dns://NAME:PORT`` among them stands for all that are behind the name now.

    Raises:
        UsageError: there are too many, two are the same, or a name has no address.
    """
    found = [url for one in given for url in (_resolve(one) if one.startswith(f"{DNS}://") else [one])]
    if len(found) > MOST_SERVERS:
        raise UsageError(f"{len(found)} servers are too many: at most {MOST_SERVERS} can be asked at once")
    bases = [url.rstrip("/").removesuffix("/v1") for url in found]
    for url, base in zip(found, bases, strict=True):
        if bases.count(base) > 1:
            raise UsageError(f"{one_line(url)}: is named twice")
    return found


def from_source(source: str) -> list[str]:
    """URLs from a file with one a line, or ``dns://NAME:PORT`` itself. Empty lines, and what follows a ``#``, are none.

    Raises:
        UsageError: the file isn't there, is too long, is no text, or names no server.
    """
    if source.startswith(f"{DNS}://"):
        return [source]
    try:
        content = read_regular(Path(source), _MOST_BYTES)
        lines = [line.partition("#")[0].strip() for line in content.decode("utf-8").splitlines()]
    except FileNotFoundError:
        raise UsageError(f"{source}: no such file") from None
    except OSError as error:
        raise UsageError(f"{source}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{source}: is no text in UTF-8") from None
    if len(content) > _MOST_BYTES:
        raise UsageError(f"{source}: is longer than {_MOST_BYTES} bytes")
    if not any(lines):
        raise UsageError(f"{source}: names no server")
    return list(filter(None, lines))


def _resolve(url: str) -> list[str]:
    """The servers behind a name, sorted."""
    host, port = _host_and_port(url)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"{one_line(url)}: {getattr(error, 'strerror', None) or error}") from None
    hosts = {str(address[0]) for *_, address in found}
    return sorted(f"http://[{one}]:{port}" if ":" in one else f"http://{one}:{port}" for one in hosts)


def _host_and_port(url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        host, port, rest = parts.hostname, parts.port, f"{parts.path.strip('/')}{parts.query}{parts.fragment}"
    except ValueError:
        host, port, rest = None, None, ""
    if not host or not port or port > _MOST_PORT or rest or "@" in url:
        raise UsageError(f"{one_line(url)}: expected {DNS}://NAME:PORT, such as {DNS}://vllm-surgery-pods:8000")
    return host, port
