# SPDX-License-Identifier: Apache-2.0
"""`vllm-surgery export-lora`: neuron edits as a LoRA adapter."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_surgery.cli.options import add_command, add_json, open_model, tell
from vllm_surgery.imports.loading import load_patches
from vllm_surgery.installed import require
from vllm_surgery.patch.describe import count

if TYPE_CHECKING:
    import argparse

    from vllm_surgery.cli.options import Subparsers


def add_to(subparsers: Subparsers) -> None:
    """Adds the command."""
    parser = add_command(
        subparsers,
        "export-lora",
        run,
        "Write neuron edits as a LoRA adapter, so that vLLM's own --enable-lora answers with and without them.",
    )
    parser.add_argument("patches", nargs="+", metavar="PATCH", help="a patch file; several become one adapter")
    parser.add_argument("--model", metavar="DIR", required=True, help="the model's Hugging Face folder")
    parser.add_argument("--out", metavar="DIR", required=True, type=Path, help="where the adapter goes")
    add_json(parser)


def run(args: argparse.Namespace, _rest: list[str]) -> int:
    """Carries the command out."""
    require("export-lora", "torch")
    from vllm_surgery.offline.export_lora import export_lora, serve_command

    done = export_lora(load_patches(args.patches), open_model(args.model), args.out, progress=True)
    if args.json:
        print(json.dumps({"ok": True, **dataclasses.asdict(done), "folder": str(done.folder)}, indent=2))
        return 0
    edited = f"{count(done.units, 'neuron')} in {count(done.modules, 'down projection')}"
    tell(f"exported: {done.folder} holds {done.id}: {edited}, rank {done.rank}")
    tell(f"serve it: {serve_command(done, str(done.folder))}")
    return 0
