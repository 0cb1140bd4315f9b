# SPDX-License-Identifier: Apache-2.0
"""`vllm-surgery demo-model`: a small real model to try everything on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_surgery.cli.options import add_command, add_json
from vllm_surgery.demo.model import default_folder, make_demo_model

if TYPE_CHECKING:
    import argparse

    from vllm_surgery.cli.options import Subparsers


def add_to(subparsers: Subparsers) -> None:
    """Adds the command."""
    parser = add_command(
        subparsers, "demo-model", run, "Make SmolLM2-135M-Instruct as a Hugging Face folder, and print its path."
    )
    parser.add_argument(
        "folder", nargs="?", metavar="DIR", type=Path, default=default_folder(), help="where (%(default)s)"
    )
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights (%(default)s)"
    )
    add_json(parser)


def run(args: argparse.Namespace, _rest: list[str]) -> int:
    """Carries the command out."""
    made = make_demo_model(args.folder, args.dtype)
    print(f"demo-model: {'made' if made else 'already there'}", file=sys.stderr)
    path = str(args.folder.absolute())
    print(json.dumps({"path": path, "made": made}) if args.json else path)
    return 0
