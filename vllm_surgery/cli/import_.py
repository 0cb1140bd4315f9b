# SPDX-License-Identifier: Apache-2.0
"""`vllm-surgery import`: a list of experts in another tool's form as a patch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_surgery.cli.options import add_command, add_json, check_out, open_model, tell
from vllm_surgery.imports.convert import import_file
from vllm_surgery.imports.forms import FORMS
from vllm_surgery.imports.options import ImportOptions
from vllm_surgery.patch.describe import count
from vllm_surgery.patch.files import write_patch

if TYPE_CHECKING:
    import argparse

    from vllm_surgery.cli.options import Subparsers
    from vllm_surgery.imports.convert import Imported


def add_to(subparsers: Subparsers) -> None:
    """Adds the command."""
    parser = add_command(
        subparsers, "import", run, "Make a patch of a list of experts that another tool wrote: profile, ranking, map."
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="the other tool's file")
    parser.add_argument("--model", metavar="DIR", required=True, help="the model's Hugging Face folder")
    parser.add_argument("-o", "--out", metavar="PATCH", type=Path, help="where to write the patch; else it is printed")
    parser.add_argument(
        "--as",
        dest="form",
        choices=[form.word for form in FORMS],
        help="the file's form (default: as the file itself tells)",
    )
    parser.add_argument("--name", help="the patch's name (default: the file's)")
    parser.add_argument(
        "--prune-ratio", type=float, metavar="R", help="of a ranking: the share of experts that is taken out"
    )
    parser.add_argument(
        "--deactivate", type=int, metavar="N", help="of a ranking of SteerMoE: how many experts are deactivated"
    )
    parser.add_argument("--reverse", action="store_true", help="of a ranking of SteerMoE: turn its sign round")
    parser.add_argument(
        "--leave-out-activated", action="store_true", help="leave out experts that the file activates: no patch can"
    )
    add_json(parser)


def run(args: argparse.Namespace, _rest: list[str]) -> int:
    """Carries the command out."""
    options = ImportOptions(
        prune_ratio=args.prune_ratio,
        deactivate=args.deactivate,
        reverse=args.reverse,
        leave_out_activated=args.leave_out_activated,
    )
    model = open_model(args.model)
    check_out(args.out, files=[args.file], models=[model.path])
    found = import_file(args.file, model, form=args.form, name=args.name, options=options)
    if args.out is not None:
        write_patch(found.patch, args.out)
    if args.json:
        told = {"ok": True, "form": found.form.word, "id": found.patch.id, "patch": found.patch.to_data()}
        print(json.dumps({**told, "notes": found.notes}, indent=2))
    else:
        _print(found, args.file, args.out)
    return 0


def _print(found: Imported, file: Path, out: Path | None) -> None:
    """The patch alone goes to stdout, so that it can be piped; what is said about it goes to stderr."""
    for note in found.notes:
        tell(f"note: {note}", aside=True)
    if out is None:
        print(found.patch.to_yaml(), end="")
        return
    experts = [len(span) for item in found.patch.assignments() for span in item.ranges]
    layers = len({item.layer for item in found.patch.assignments()})
    what = {"mask": "masked", "zero": "silenced"}[found.patch.edits[0].op]
    tell(
        f"imported: {file} is {found.form.title}; {out} is {found.patch.id}, "
        f"{count(sum(experts), 'expert')} {what} in {count(layers, 'layer')}"
    )
