# SPDX-License-Identifier: Apache-2.0
"""Options of the commands that talk to a running server."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from vllm_surgery.client.protocol import SURGERY_KEY_VARIABLE
from vllm_surgery.errors import visible
from vllm_surgery.installed import require

if TYPE_CHECKING:
    import argparse

    from pydantic import BaseModel

    from vllm_surgery.client.client import SurgeryClient

DEFAULT_URL = "http://localhost:8000"
KEY_VARIABLE = "VLLM_API_KEY"


def add_server(parser: argparse.ArgumentParser) -> None:
    """The options ``--url``, ``--api-key`` and ``--surgery-key``."""
    parser.add_argument("--url", default=DEFAULT_URL, help="where the server is (default: %(default)s)")
    parser.add_argument(
        "--api-key", metavar="KEY", help=f"what the server was started with (default: ${KEY_VARIABLE}, if it is set)"
    )
    parser.add_argument(
        "--surgery-key",
        metavar="KEY",
        help=f"what its swaps ask for, where it was started with one (default: ${SURGERY_KEY_VARIABLE}, if it is set)",
    )


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
