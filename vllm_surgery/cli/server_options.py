# SPDX-License-Identifier: Apache-2.0
"""Options of the commands that talk to a running server."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from vllm_surgery.client.addresses import expand, from_source
from vllm_surgery.client.protocol import SURGERY_KEY_VARIABLE
from vllm_surgery.errors import visible
from vllm_surgery.installed import require

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Mapping

    from pydantic import BaseModel

    from vllm_surgery.client.client import SurgeryClient

DEFAULT_URL = "http://localhost:8000"
KEY_VARIABLE = "VLLM_API_KEY"


def add_server(parser: argparse.ArgumentParser) -> None:
    """The options ``--url``, ``--api-key`` and ``--surgery-key``."""
    parser.add_argument("--url", default=DEFAULT_URL, help="where the server is (default: %(default)s)")
    _add_keys(parser)


def add_servers(parser: argparse.ArgumentParser) -> None:
    """The same for several servers, and ``--urls-from``."""
    parser.add_argument(
        "--url", action="append", metavar="URL", help=f"where a server is; may be repeated (default: {DEFAULT_URL})"
    )
    parser.add_argument(
        "--urls-from",
        metavar="FILE",
        help="a file with a URL a line; or dns://NAME:PORT for all servers behind a name, such as a headless service",
    )
    _add_keys(parser)


def _add_keys(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--api-key", metavar="KEY", help=f"what the server was started with (default: ${KEY_VARIABLE}, if it is set)"
    )
    parser.add_argument(
        "--surgery-key",
        metavar="KEY",
        help=f"what its swaps ask for, where it was started with one (default: ${SURGERY_KEY_VARIABLE}, if it is set)",
    )


def urls_of(args: argparse.Namespace) -> list[str]:
    """The servers that the options of `add_servers` name.

    Raises:
        UsageError: see `vllm_surgery.client.addresses`.
    """
    listed = from_source(args.urls_from) if args.urls_from is not None else []
    return expand([*(args.url or []), *listed] or [DEFAULT_URL])


def clients_of(args: argparse.Namespace, change_seconds: float | None = None) -> list[SurgeryClient]:
    """A client for each server that the options of `add_servers` name.

    Args:
        args: the options.
        change_seconds: how long to wait for a change; None: as long as it takes.

    Raises:
        UsageError: httpx isn't there, or as `urls_of`.
    """
    require("talking to a server", "httpx")
    from vllm_surgery.client.client import SurgeryClient

    keys = key_of(args), surgery_key_of(args)
    return [SurgeryClient(url, *keys, change_seconds=change_seconds) for url in urls_of(args)]


def client_of(args: argparse.Namespace) -> SurgeryClient:
    """The client that the options ask for.

    Raises:
        UsageError: httpx isn't there.
    """
    require("talking to a server", "httpx")
    from vllm_surgery.client.client import SurgeryClient

    return SurgeryClient(args.url, key_of(args), surgery_key_of(args))


def key_of(args: argparse.Namespace) -> str | None:
    """The API key that the options or the environment name."""
    key = args.api_key if args.api_key is not None else os.environ.get(KEY_VARIABLE)
    return key or None


def surgery_key_of(args: argparse.Namespace) -> str | None:
    """The surgery key that the options or the environment name."""
    key = args.surgery_key if args.surgery_key is not None else os.environ.get(SURGERY_KEY_VARIABLE)
    return key or None


def as_json(answer: BaseModel) -> str:
    """A server's answer as JSON in ASCII: no byte of it means anything to a terminal."""
    return json.dumps(answer.model_dump(), indent=2)


def in_columns(rows: list[tuple[str, str]]) -> str:
    """Lines of two aligned columns, in which no byte means anything to a terminal."""
    rows = [(visible(left), visible(right)) for left, right in rows]
    width = max((len(left) for left, _ in rows), default=0)
    return "\n".join(f"{left:{width}}  {right}".rstrip() for left, right in rows)


def outcomes_in_words(servers: Iterable[Mapping[str, str | None]]) -> str:
    """A line for each server of a change that failed: what became of it there, what it serves, and why."""
    rows = []
    for server in servers:
        serves = f"serves {server['serves']}" if server["serves"] is not None else None
        rows.append((str(server["url"]), "; ".join(filter(None, [server["fate"], serves, server["reason"]]))))
    return in_columns(rows)
