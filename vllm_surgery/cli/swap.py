# SPDX-License-Identifier: Apache-2.0
"""`vllm-surgery swap`: other patches on a running server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from vllm_surgery.cli.options import add_command, add_json
from vllm_surgery.cli.server_options import add_server, client_of
from vllm_surgery.client.protocol import SwapMode
from vllm_surgery.errors import UsageError
from vllm_surgery.patch.files import ENDINGS
from vllm_surgery.patch.patch_set import NO_PATCH, PatchSet

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from vllm_surgery.cli.options import Subparsers
    from vllm_surgery.client.protocol import SwapReport


def add_to(subparsers: Subparsers) -> None:
    """Adds the command."""
    parser = add_command(subparsers, "swap", run, "Serve with these patches, and no others, from now on.")
    parser.add_argument(
        "patches",
        nargs="+",
        metavar="PATCH",
        help=f"a patch file, the name of a patch in the server's folders, or `{NO_PATCH}` for the model as it is",
    )
    parser.add_argument(
        "--mode",
        choices=get_args(SwapMode),
        default="keep",
        help="what becomes of running requests: they go on, are waited for, or are ended (default: %(default)s)",
    )
    parser.add_argument("--if-epoch", type=int, metavar="N", help="refuse unless the server's epoch is N; see `status`")
    add_server(parser)
    add_json(parser)


def run(args: argparse.Namespace, _rest: list[str]) -> int:
    """Carries the command out."""
    if args.if_epoch is not None and args.if_epoch < 0:
        raise UsageError("--if-epoch: an epoch is 0 or more")
    wanted = wanted_patches(args.patches)
    report = client_of(args).swap(wanted, mode=args.mode, if_epoch=args.if_epoch)
    print(report.model_dump_json(indent=2) if args.json else _in_words(report))
    return 0


def wanted_patches(words: Sequence[str]) -> list[str | dict[str, Any]]:
    """The patches to ask the server for. Local files are read and validated here, and sent themselves.

    Raises:
        UsageError: a file is missing, or `none` stands beside others.
        PatchError: a file is refused.
    """
    if NO_PATCH in words:
        if len(words) > 1:
            raise UsageError(f"`{NO_PATCH}` stands for no patch at all, so it stands alone")
        return []
    files = PatchSet.load(word for word in words if _is_file(word)).members
    read = iter(member.patch.to_data() for member in files)
    return [next(read) if _is_file(word) else word for word in words]


def _is_file(word: str) -> bool:
    return os.sep in word or word.endswith(ENDINGS) or Path(word).is_file()


def _in_words(report: SwapReport) -> str:
    times = report.milliseconds
    if report.id == report.previous:
        return f"{report.id} was active already, epoch {report.epoch}"
    steps = ", ".join(f"{name} {getattr(times, name):.1f}" for name in ("stage", "pause", "apply", "verify"))
    return f"{report.id} in place of {report.previous}, epoch {report.epoch}\n{times.total:.1f} ms: {steps}"
