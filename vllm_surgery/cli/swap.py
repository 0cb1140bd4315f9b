# SPDX-License-Identifier: Apache-2.0
"""`vllm-surgery swap`: other patches on a running server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from vllm_surgery.cli.options import add_command, add_json
from vllm_surgery.cli.server_options import add_server, as_json, client_of
from vllm_surgery.client.protocol import SwapMode
from vllm_surgery.errors import UsageError, one_line, visible
from vllm_surgery.patch.describe import count
from vllm_surgery.patch.files import ENDINGS
from vllm_surgery.patch.patch_set import NO_PATCH, PatchSet

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from vllm_surgery.cli.options import Subparsers
    from vllm_surgery.client.protocol import SlotsReport, SwapReport


def add_to(subparsers: Subparsers) -> None:
    """Adds the command."""
    parser = add_command(subparsers, "swap", run, "Serve with these patches, and no others, from now on.")
    parser.add_argument(
        "patches",
        nargs="*",
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
    slots = parser.add_argument_group("slots", "on a server that was started with --patch-slots; no request waits")
    slots.add_argument(
        "--fill", action="store_true", help="put each PATCH into a slot, for requests that choose it; the default stays"
    )
    slots.add_argument("--free", action="append", default=[], metavar="NAME", help="offer a patch no more")
    slots.add_argument(
        "--share",
        action="append",
        default=[],
        metavar="NAME=SHARE",
        help=f"draw the default: `--share p=0.5 --share {NO_PATCH}=0.5`",
    )
    slots.add_argument("--promote", action="store_true", help="write the default into the weights")
    add_server(parser)
    add_json(parser)


def run(args: argparse.Namespace, _rest: list[str]) -> int:
    """Carries the command out."""
    if args.if_epoch is not None and args.if_epoch < 0:
        raise UsageError("--if-epoch: an epoch is 0 or more")
    if args.fill or args.free or args.share:
        return _change_slots(args)
    if args.promote:
        return _promote(args)
    if not args.patches:
        raise UsageError(f"name the patches to serve, or `{NO_PATCH}`")
    wanted = wanted_patches(args.patches)
    report = client_of(args).swap(wanted, mode=args.mode, if_epoch=args.if_epoch)
    print(as_json(report) if args.json else _in_words(report))
    return 0


def _promote(args: argparse.Namespace) -> int:
    if args.patches:
        raise UsageError("--promote writes the default that there is; swap to other patches before it")
    report = client_of(args).promote(mode=args.mode, if_epoch=args.if_epoch)
    print(as_json(report) if args.json else _in_words(report))
    return 0


def _change_slots(args: argparse.Namespace) -> int:
    if args.patches and not args.fill:
        raise UsageError("--free and --share change no patch: to add patches beside them say --fill")
    if args.fill and not args.patches:
        raise UsageError("--fill needs patches to put into slots")
    fill = wanted_patches(args.patches) if args.patches else []
    report = client_of(args).change_slots(
        fill, free=args.free, default=_shares(args.share) or None, if_epoch=args.if_epoch
    )
    print(as_json(report) if args.json else _slots_in_words(report))
    return 0


def _shares(words: Sequence[str]) -> dict[str, float]:
    """The shares of the default.

    Raises:
        UsageError: a word isn't a name and a number.
    """
    shares = {}
    for word in words:
        name, _, share = word.rpartition("=")
        try:
            shares[name] = float(share)
        except ValueError:
            raise UsageError(f"--share {word}: expected a name and a number, such as {NO_PATCH}=0.5") from None
    return shares


def _slots_in_words(report: SlotsReport) -> str:
    slots = report.slots
    names = ", ".join(patch.id for patch in slots.patches if not patch.leaving) or "no patch"
    shares = ", ".join(f"{name} {share:.4g}" for name, share in slots.default.items())
    return f"{visible(f'slots: {names}; default: {shares}; epoch {report.epoch}')}\n{report.milliseconds.total:.1f} ms"


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
        return f"{visible(report.id)} was active already, epoch {report.epoch}"
    steps = ", ".join(f"{name} {getattr(times, name):.1f}" for name in ("stage", "pause", "apply", "verify"))
    told = [f"{report.id} in place of {report.previous}, epoch {report.epoch}", f"{times.total:.1f} ms: {steps}"]
    if report.modules:
        told.append(f"verified in {count(report.verified, 'place')}")
    told += [f"not verified: {count(each.parts, 'part')}: {one_line(each.reason)}" for each in report.unverified]
    return "\n".join(map(visible, told))
