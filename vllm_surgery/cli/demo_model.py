# SPDX-License-Identifier: Apache-2.0
"""`vllm-surgery demo-model`: a small real model to try everything on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_surgery.cli.options import add_command, add_json
from vllm_surgery.demo.model import default_folder, make_demo_model
from vllm_surgery.demo.sources import SOURCES

if TYPE_CHECKING:
    import argparse

    from vllm_surgery.cli.options import Subparsers


def add_to(subparsers: Subparsers) -> None:
    """Adds the command."""
    parser = add_command(
        subparsers, "demo-model", run, "Make a small real model as a Hugging Face folder, and print its path."
    )
    parser.add_argument(
        "folder", nargs="?", metavar="DIR", type=Path, help="where (in the user's cache folder, by the model's name)"
    )
    titles = ", ".join(f"{name}: {source.title}" for name, source in SOURCES.items())
    parser.add_argument("--family", choices=list(SOURCES), default="smollm2", help=f"{titles} (%(default)s)")
    parser.add_argument("--accept-terms", action="store_true", help="accept the terms of a model that has its own")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights (%(default)s)"
    )
    add_json(parser)


def run(args: argparse.Namespace, _rest: list[str]) -> int:
    """Carries the command out."""
    folder = args.folder or default_folder(args.family)
    made = make_demo_model(folder, args.dtype, args.family, accept_terms=args.accept_terms)
    print(f"demo-model: {'made' if made else 'already there'}", file=sys.stderr)
    path = str(folder.absolute())
    print(json.dumps({"path": path, "made": made}) if args.json else path)
    return 0
