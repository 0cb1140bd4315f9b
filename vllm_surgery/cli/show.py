# SPDX-License-Identifier: Apache-2.0
"""`vllm-surgery show`: a patch in words."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from vllm_surgery.cli.options import add_command, add_json
from vllm_surgery.describe import describe
from vllm_surgery.patch import load_patch

if TYPE_CHECKING:
    import argparse

    from vllm_surgery.cli.options import Subparsers


def add_to(subparsers: Subparsers) -> None:
    """Adds the command."""
    parser = add_command(subparsers, "show", run, "Say in words what a patch does, and to which model.")
    parser.add_argument("patch", metavar="PATCH", help="a patch file")
    add_json(parser)


def run(args: argparse.Namespace, _rest: list[str]) -> int:
    """Carries the command out."""
    patch = load_patch(args.patch)
    if args.json:
        print(json.dumps({"id": patch.id, "digest": patch.digest, "patch": patch.to_data()}, indent=2))
    else:
        print(describe(patch))
    return 0
