# SPDX-License-Identifier: Apache-2.0
"""`vllm-surgery bake`: a patched copy of a checkpoint."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_surgery.cli.options import add_command, add_json, open_model, tell
from vllm_surgery.errors import UsageError, one_line
from vllm_surgery.imports.loading import load_patches
from vllm_surgery.installed import require
from vllm_surgery.model.gguf_model import GgufModel, is_gguf
from vllm_surgery.patch.describe import count
from vllm_surgery.planning.gguf import unprovable

if TYPE_CHECKING:
    import argparse

    from vllm_surgery.cli.options import Subparsers
    from vllm_surgery.patch.patch_set import PatchSet


def add_to(subparsers: Subparsers) -> None:
    """Adds the command."""
    parser = add_command(
        subparsers, "bake", run, "Write a patched copy of a model's Hugging Face folder or GGUF file, for any engine."
    )
    parser.add_argument("patches", nargs="+", metavar="PATCH", help="a patch file; several are applied as one set")
    parser.add_argument(
        "--model", metavar="DIR", required=True, help="the model's folder or .gguf file; it isn't touched"
    )
    parser.add_argument("--out", metavar="DIR", required=True, type=Path, help="where the copy goes: DIR or FILE.gguf")
    parser.add_argument(
        "--copy", action="store_true", help="copy untouched files; else they are hard links where that is possible"
    )
    parser.add_argument(
        "--unproven",
        action="store_true",
        help="of a GGUF file: leave out what it can't prove, which is seals and the model's name and commit on the Hub",
    )
    add_json(parser)


def run(args: argparse.Namespace, _rest: list[str]) -> int:
    """Carries the command out."""
    require("bake", "torch")
    from vllm_surgery.offline.bake import bake

    patches = load_patches(args.patches)
    if is_gguf(args.model):
        return _bake_gguf(unprovable(patches) if args.unproven else patches, args)
    if args.unproven:
        raise UsageError("--unproven is for GGUF files; a checkpoint can prove what a patch asks of it")
    baked = bake(patches, open_model(args.model), args.out, link=not args.copy, progress=True)
    if args.json:
        print(json.dumps({"ok": True, **dataclasses.asdict(baked), "folder": str(baked.folder)}, indent=2))
        return 0
    units, tensors = count(baked.units, "unit"), count(baked.tensors, "tensor")
    files = f"{count(baked.written, 'file')} written, {baked.linked} linked"
    tell(f"baked: {baked.folder} holds {baked.id}: {units} in {tensors}; {files}")
    if baked.left_out:
        tell(f"left out, since they hold the weights unedited: {', '.join(map(one_line, baked.left_out))}")
    return 0


def _bake_gguf(patches: PatchSet, args: argparse.Namespace) -> int:
    from vllm_surgery.offline.gguf import bake_gguf

    baked = bake_gguf(patches, GgufModel(Path(args.model)), args.out, progress=True)
    if args.json:
        print(json.dumps({"ok": True, **dataclasses.asdict(baked), "file": str(baked.file)}, indent=2))
        return 0
    units, tensors = count(baked.units, "unit"), count(baked.tensors, "tensor")
    tell(f"baked: {baked.file} holds {baked.id}: {units} in {tensors}")
    return 0
