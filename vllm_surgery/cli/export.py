# SPDX-License-Identifier: Apache-2.0
"""`vllm-surgery export`: a patch as a list of experts in another tool's form."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_surgery.atomic_files import atomic_write
from vllm_surgery.cli.options import add_command, add_json, check_out, open_model, tell
from vllm_surgery.errors import SurgeryError
from vllm_surgery.imports.convert import export_patch, ratio_of_ranking
from vllm_surgery.imports.forms import FORMS
from vllm_surgery.imports.loading import load_named

if TYPE_CHECKING:
    import argparse

    from vllm_surgery.cli.options import Subparsers


def add_to(subparsers: Subparsers) -> None:
    """Adds the command."""
    parser = add_command(
        subparsers, "export", run, "Write a patch that masks or silences experts in another tool's form."
    )
    parser.add_argument("patch", metavar="PATCH", help="a patch file")
    parser.add_argument("--as", dest="form", required=True, choices=[form.word for form in FORMS], help="the form")
    parser.add_argument("--model", metavar="DIR", help="the model's folder; a ranking needs it")
    parser.add_argument("-o", "--out", metavar="FILE", type=Path, help="where to write; else it is printed")
    add_json(parser)


def run(args: argparse.Namespace, _rest: list[str]) -> int:
    """Carries the command out."""
    member = load_named(args.patch)
    model = open_model(args.model) if args.model else None
    check_out(args.out, files=[Path(args.patch)], models=[model.path] if model is not None else [])
    content = export_patch(member.patch, args.form, model, source=member.source)
    ratio = ratio_of_ranking(member.patch, model) if args.form == "ranking" and model is not None else None
    if args.out is not None:
        _write(args.out, content)
    if args.json:
        where = {"content": content} if args.out is None else {"file": str(args.out)}
        told = {"ok": True, "form": args.form, "id": member.patch.id, "prune_ratio": ratio, **where}
        print(json.dumps(told, indent=2))
        return 0
    if ratio is not None:
        print(f"note: it goes with an expert_prune_ratio of {ratio:g}", file=sys.stderr)
    if args.out is None:
        print(content, end="")
    else:
        tell(f"exported: {args.out} holds {member.patch.id}")
    return 0


def _write(out: Path, content: str) -> None:
    try:
        atomic_write(out, content)
    except OSError as error:
        raise SurgeryError(f"{out}: can't be written: {error.strerror or error}") from None
