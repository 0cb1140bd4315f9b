# SPDX-License-Identifier: Apache-2.0
"""`vllm-surgery bake`: a patched copy of a checkpoint."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_surgery.cli.options import add_command, add_json, open_model
from vllm_surgery.errors import one_line
from vllm_surgery.imports.loading import load_patches
from vllm_surgery.installed import require
from vllm_surgery.patch.describe import count

if TYPE_CHECKING:
    import argparse

    from vllm_surgery.cli.options import Subparsers


def add_to(subparsers: Subparsers) -> None:
    """Adds the command."""
    parser = add_command(
        subparsers, "bake", run, "Write a patched copy of a model's Hugging Face folder, for any engine."
    )
    parser.add_argument("patches", nargs="+", metavar="PATCH", help="a patch file; several are applied as one set")
    parser.add_argument("--model", metavar="DIR", required=True, help="the model's folder; it isn't touched")
    parser.add_argument("--out", metavar="DIR", required=True, type=Path, help="where the copy goes")
    parser.add_argument(
        "--copy", action="store_true", help="copy untouched files; else they are hard links where that is possible"
    )
    add_json(parser)


def run(args: argparse.Namespace, _rest: list[str]) -> int:
    """Carries the command out."""
    require("bake", "torch")
    from vllm_surgery.offline.bake import bake

    patches = load_patches(args.patches)
    baked = bake(patches, open_model(args.model), args.out, link=not args.copy, progress=True)
    if args.json:
        print(json.dumps({"ok": True, **dataclasses.asdict(baked), "folder": str(baked.folder)}, indent=2))
        return 0
    units, tensors = count(baked.units, "unit"), count(baked.tensors, "tensor")
    files = f"{count(baked.written, 'file')} written, {baked.linked} linked"
    print(f"baked: {baked.folder} holds {baked.id}: {units} in {tensors}; {files}")
    if baked.left_out:
        print(f"left out, since they hold the weights unedited: {', '.join(map(one_line, baked.left_out))}")
    return 0
