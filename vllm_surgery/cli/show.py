# SPDX-License-Identifier: Apache-2.0
"""`vllm-surgery show`: a patch in words."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from vllm_surgery.cli.options import add_command, add_json, open_model
from vllm_surgery.imports.loading import load_named
from vllm_surgery.patch.describe import describe, model_card
from vllm_surgery.planning.inventory import describe_model

if TYPE_CHECKING:
    import argparse

    from vllm_surgery.cli.options import Subparsers


def add_to(subparsers: Subparsers) -> None:
    """Adds the command."""
    parser = add_command(subparsers, "show", run, "Say in words what a patch does, and to which model.")
    parser.add_argument("patch", metavar="PATCH", help="a patch file")
    parser.add_argument("--model", metavar="DIR", help="a model's folder, to say what it is made of too")
    parser.add_argument("--markdown", action="store_true", help="as a section for the card of a model")
    add_json(parser)


def run(args: argparse.Namespace, _rest: list[str]) -> int:
    """Carries the command out."""
    patch = load_named(args.patch).patch
    model = describe_model(open_model(args.model)) if args.model else None
    if args.json:
        print(json.dumps({"id": patch.id, "digest": patch.digest, "model": model, "patch": patch.to_data()}, indent=2))
        return 0
    print(model_card(patch) if args.markdown else describe(patch))
    if model is not None:
        print(f"\n{model}" if args.markdown else f"  model {model}")
    return 0
