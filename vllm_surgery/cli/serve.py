# SPDX-License-Identifier: Apache-2.0
"""`vllm-surgery serve`: vLLM's own server, with patches."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from vllm_surgery.cli.options import add_command
from vllm_surgery.errors import EngineError
from vllm_surgery.stack import PatchSet

if TYPE_CHECKING:
    import argparse

    from vllm_surgery.cli.options import Subparsers

_HELP = ("-h", "--help")


def add_to(subparsers: Subparsers) -> None:
    """Adds the command."""
    parser = add_command(
        subparsers,
        "serve",
        run,
        "Start vLLM's OpenAI-compatible server with patches applied to the model.",
        takes_rest=True,
        add_help=False,  # A bare --help shows both sets of options; --help=GROUP is vLLM's alone.
        usage="vllm-surgery serve MODEL [--patch FILE]... [any option of `vllm serve`]",
    )
    parser.add_argument(
        "--patch", action="append", default=[], metavar="FILE", help="a patch file; may be given more than once"
    )
    parser.set_defaults(print_help=parser.print_help)


def run(args: argparse.Namespace, rest: list[str]) -> int:
    """Carries the command out: returns when the server was stopped."""
    if any(word in rest for word in _HELP):
        args.print_help()
        print("\nAll other options are those of `vllm serve`:\n")
    patches = PatchSet.load(args.patch)
    if importlib.util.find_spec("vllm") is None:
        raise EngineError("serve needs vLLM: install vllm-surgery with its extra `gpu` or `cpu`")
    from vllm_surgery.engine.serve import serve

    serve(patches, rest)
    return 0
