# SPDX-License-Identifier: Apache-2.0
"""`vllm-surgery push`: patches, and what a model's card says of them, into a repository of the Hub."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

from vllm_surgery.cli.options import add_command, add_json
from vllm_surgery.imports.loading import load_patches
from vllm_surgery.imports.publishing import CARD, files_to_publish, publish

if TYPE_CHECKING:
    import argparse

    from vllm_surgery.cli.options import Subparsers


def add_to(subparsers: Subparsers) -> None:
    """Adds the command."""
    parser = add_command(
        subparsers,
        "push",
        run,
        "Publish patches in a repository of the Hugging Face Hub: the files, and a section of its card for each.",
    )
    parser.add_argument("patches", nargs="+", metavar="PATCH", help="a patch file")
    parser.add_argument("--repo", metavar="ORG/NAME", required=True, help="the repository")
    parser.add_argument("--revision", metavar="BRANCH", default="main", help="its branch (default: %(default)s)")
    parser.add_argument("--create", action="store_true", help="make the repository, a private one, if there is none")
    parser.add_argument("--dry-run", action="store_true", help="upload nothing, and print the card that it would have")
    add_json(parser)


def run(args: argparse.Namespace, _rest: list[str]) -> int:
    """Carries the command out."""
    files = files_to_publish(load_patches(args.patches), args.repo, revision=args.revision)
    if args.dry_run:
        told = {name: content.decode() for name, content in files.items()}
        print(json.dumps({"ok": True, "files": told}, indent=2) if args.json else told[CARD].rstrip())
        return 0
    done = publish(files, args.repo, revision=args.revision, create=args.create)
    if args.json:
        print(json.dumps({"ok": True, **dataclasses.asdict(done)}, indent=2))
        return 0
    print(f"published: {done.url}")
    for address in done.addresses:
        print(f"  {address}")
    return 0
