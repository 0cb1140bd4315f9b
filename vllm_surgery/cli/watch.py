# SPDX-License-Identifier: Apache-2.0
"""`vllm-surgery watch`: does a running server loop, and did the patch help? In a terminal."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from typing import TYPE_CHECKING, Any

from vllm_surgery.cli.options import add_command, add_json
from vllm_surgery.cli.server_options import add_server, client_of
from vllm_surgery.errors import SurgeryError, UsageError
from vllm_surgery.installed import require

if TYPE_CHECKING:
    import argparse

    from vllm_surgery.cli.options import Subparsers
    from vllm_surgery.cli.watch_view import Screen
    from vllm_surgery.client.client import SurgeryClient
    from vllm_surgery.client.protocol import ServerState
    from vllm_surgery.client.traffic import Traffic

_SECONDS = 5.0
"""Prometheus asks every 15. A person who waits for a change wants it sooner, and an answer takes milliseconds."""


def add_to(subparsers: Subparsers) -> None:
    """Adds the command."""
    parser = add_command(subparsers, "watch", run, "Watch loops, by patch, on a running server; until interrupted.")
    add_server(parser)
    parser.add_argument(
        "--interval", type=float, default=_SECONDS, metavar="S", help="seconds between two looks (default: %(default)g)"
    )
    parser.add_argument("--once", action="store_true", help="look once")
    add_json(parser)


def run(args: argparse.Namespace, _rest: list[str]) -> int:
    """Carries the command out."""
    if not (math.isfinite(args.interval) and args.interval > 0):
        raise UsageError("--interval: must be more than 0 seconds")
    client = client_of(args)
    require("watch", "prometheus_client", *([] if args.json else ["rich"]))
    if args.json:
        _write_lines(client, args)
    else:
        _draw(client, args)
    return 0


def _look(client: SurgeryClient) -> tuple[ServerState, Traffic]:
    from vllm_surgery.client.traffic import Traffic

    return client.state(), Traffic.of(client.metrics())


def _write_lines(client: SurgeryClient, args: argparse.Namespace) -> None:
    """An object a look: for people where there is one alone, else a line each."""
    print(json.dumps(_content(client), indent=2 if args.once else None), flush=True)
    while not args.once:
        time.sleep(args.interval)
        try:
            content = _content(client)
        except SurgeryError as error:
            content = {"error": {"type": type(error).__name__, "message": str(error)}}
        print(json.dumps(content), flush=True)


def _content(client: SurgeryClient) -> dict[str, Any]:
    state, traffic = _look(client)
    return {"state": state.model_dump(), "traffic": dataclasses.asdict(traffic)}


def _draw(client: SurgeryClient, args: argparse.Namespace) -> None:
    from vllm_surgery.cli.watch_view import Screen

    screen = Screen(args.url)
    first = _look(client)  # A server that isn't there from the start is an error, not something to wait for.
    if args.once:
        screen.show(*first)
        return
    with screen.live():
        screen.show(*first)
        while True:
            time.sleep(args.interval)
            _look_again(client, screen)


def _look_again(client: SurgeryClient, screen: Screen) -> None:
    try:
        screen.show(*_look(client))
    except SurgeryError as error:
        screen.complain(str(error))
