# SPDX-License-Identifier: Apache-2.0
"""`vllm-surgery patches`: what lies in a running server's patch folders."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_surgery.cli.options import add_command, add_json
from vllm_surgery.cli.server_options import add_server, as_json, client_of, in_columns
from vllm_surgery.errors import one_line

if TYPE_CHECKING:
    import argparse

    from vllm_surgery.cli.options import Subparsers


def add_to(subparsers: Subparsers) -> None:
    """Adds the command."""
    parser = add_command(subparsers, "patches", run, "List the patches that a running server knows by name.")
    add_server(parser)
    add_json(parser)


def run(args: argparse.Namespace, _rest: list[str]) -> int:
    """Carries the command out."""
    listing = client_of(args).patches()
    if args.json:
        print(as_json(listing))
    elif listing.patches:
        rows = [(item.name, item.id or f"refused: {one_line(item.error or '')}") for item in listing.patches]
        print(in_columns(rows))
    return 0
