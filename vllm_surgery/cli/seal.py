# SPDX-License-Identifier: Apache-2.0
"""`vllm-surgery seal`: bind a patch file to one model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_surgery.cli.options import add_command, add_json, check_out, open_model, tell
from vllm_surgery.errors import UsageError
from vllm_surgery.imports.loading import load_named
from vllm_surgery.imports.remote import is_address
from vllm_surgery.patch.describe import count
from vllm_surgery.patch.files import write_patch
from vllm_surgery.patch.format import Patch
from vllm_surgery.planning.check import seal_patch

if TYPE_CHECKING:
    import argparse

    from vllm_surgery.cli.options import Subparsers


def add_to(subparsers: Subparsers) -> None:
    """Adds the command."""
    parser = add_command(
        subparsers,
        "seal",
        run,
        "Write into a patch file what its model must be: guard, and a hash of each unit's weights. "
        "The file is written anew, so comments in it are lost.",
    )
    parser.add_argument("patch", metavar="PATCH", help="a patch file")
    parser.add_argument("--model", metavar="DIR", required=True, help="the model's Hugging Face folder")
    parser.add_argument("-o", "--out", metavar="FILE", type=Path, help="write here and leave PATCH as it is")
    add_json(parser)


def run(args: argparse.Namespace, _rest: list[str]) -> int:
    """Carries the command out."""
    file = _file_to_write(args.patch, args.out)
    named, model = load_named(args.patch), open_model(args.model)
    check_out(args.out, models=[model.path])
    patch = seal_patch(named, model)
    if file.absolute().parent != Path(args.patch).absolute().parent:  # Files that it names aren't beside it there.
        patch = Patch.from_data(patch.to_data(), args.patch)
    write_patch(patch, file)
    if args.json:
        print(json.dumps({"ok": True, "file": str(file), "id": patch.id, "units": len(patch.seal)}, indent=2))
    else:
        tell(f"sealed: {file} is {patch.id}, {count(len(patch.seal), 'unit')}")
    return 0


def _file_to_write(patch: str, out: Path | None) -> Path:
    """The file that is written: the patch's own unless another is named.

    Raises:
        UsageError: the patch has none, since it comes from an address.
    """
    if out is None and is_address(patch):
        raise UsageError(f"{patch}: a patch at an address is sealed into a file of your own: name it by -o FILE")
    return out or Path(patch)
