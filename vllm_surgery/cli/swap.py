# SPDX-License-Identifier: Apache-2.0
"""`vllm-surgery swap`: other patches on a running server, or on many."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from vllm_surgery.cli.options import add_command, add_json
from vllm_surgery.cli.server_options import add_servers, as_json, clients_of, in_columns, outcomes_in_words
from vllm_surgery.client.protocol import SwapMode, SwapReport
from vllm_surgery.errors import FleetError, UsageError, one_line, visible
from vllm_surgery.imports.loading import load_patches
from vllm_surgery.patch.describe import count
from vllm_surgery.patch.files import ENDINGS
from vllm_surgery.patch.patch_set import NO_PATCH

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from vllm_surgery.cli.options import Subparsers
    from vllm_surgery.client.client import SurgeryClient
    from vllm_surgery.client.protocol import SlotsReport


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
    parser.add_argument("--check", action="store_true", help="say whether it could be done, and change nothing")
    parser.add_argument("--undo", action="store_true", help="take the last change back; see --if-epoch")
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
    add_servers(parser)
    add_json(parser)


def run(args: argparse.Namespace, _rest: list[str]) -> int:
    """Carries the command out."""
    if args.if_epoch is not None and args.if_epoch < 0:
        raise UsageError("--if-epoch: an epoch is 0 or more")
    body = _asked_for(args)
    clients = clients_of(args)
    if len(clients) > 1:
        return _change_all(args, body)
    given = {"check": True} if args.check else {}
    given |= {} if args.if_epoch is None else {"if_epoch": args.if_epoch}
    report = clients[0].change({**body, **given})
    print(as_json(report) if args.json else _in_words(report, checked=args.check))
    return 0


def _asked_for(args: argparse.Namespace) -> dict[str, Any]:
    """The body that asks for what the options say, but for its conditions.

    Raises:
        UsageError: they contradict each other, or ask for nothing.
    """
    for alone, why in (("undo", "takes back what there is"), ("promote", "writes the default that there is")):
        if getattr(args, alone):
            return _standing_alone(args, alone, why)
    if args.fill or args.free or args.share:
        return _slots_asked_for(args)
    if not args.patches:
        raise UsageError(f"name the patches to serve, or `{NO_PATCH}`")
    return {"patches": wanted_patches(args.patches), "mode": args.mode}


def _standing_alone(args: argparse.Namespace, name: str, why: str) -> dict[str, Any]:
    if args.patches or args.fill or args.free or args.share:
        then = "swap to other patches before it" if name == "promote" else "it stands alone"
        raise UsageError(f"--{name} {why}; {then}")
    if args.check or (args.undo and args.promote):
        raise UsageError(f"--{name} stands alone")
    return {name: True, "mode": args.mode}


def _slots_asked_for(args: argparse.Namespace) -> dict[str, Any]:
    if args.patches and not args.fill:
        raise UsageError("--free and --share change no patch: to add patches beside them say --fill")
    if args.fill and not args.patches:
        raise UsageError("--fill needs patches to put into slots")
    fill = wanted_patches(args.patches) if args.patches else []
    asked = {"fill": fill, "free": args.free, "default": _shares(args.share)}
    return {key: value for key, value in asked.items() if value}


def _change_all(args: argparse.Namespace, body: dict[str, Any]) -> int:
    """The same on several servers: on all of them or on none."""
    from vllm_surgery.client.fleet import CHANGE_SECONDS, Fleet

    if args.if_epoch is not None:
        raise UsageError("--if-epoch is for one server: each has epochs of its own")
    if args.undo or args.promote:
        raise UsageError(f"--{'undo' if args.undo else 'promote'} is for one server at a time")
    fleet = Fleet(clients_of(args, CHANGE_SECONDS))
    try:
        reports = fleet.check(body, fleet.states()) if args.check else fleet.change(body)
    except FleetError as error:
        if not args.json:
            print(outcomes_in_words(error.servers))
        raise
    if args.json:
        told = zip(fleet.clients, reports, strict=True)
        print(
            json.dumps({"servers": [{"url": client.url, **report.model_dump()} for client, report in told]}, indent=2)
        )
    else:
        print(_all_in_words(fleet.clients, reports, checked=args.check))
    return 0


def _all_in_words(clients: Sequence[SurgeryClient], reports: Sequence[SwapReport | SlotsReport], checked: bool) -> str:
    rows = [
        (client.url, _in_words(report, checked=checked).splitlines()[0])
        for client, report in zip(clients, reports, strict=True)
    ]
    return in_columns(rows)


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


def _in_words(report: SwapReport | SlotsReport, *, checked: bool) -> str:
    if isinstance(report, SwapReport):
        return _checked_in_words(report) if checked else _swap_in_words(report)
    return _slots_in_words(report) if not checked else f"possible; the epoch is {report.epoch}"


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
    files = load_patches(word for word in words if _is_file(word)).members
    read = iter(member.patch.to_data() for member in files)
    return [next(read) if _is_file(word) else word for word in words]


def _is_file(word: str) -> bool:
    return os.sep in word or word.endswith(ENDINGS) or Path(word).is_file()


def _checked_in_words(report: SwapReport) -> str:
    changed = f"{count(report.units, 'unit')} in {count(report.tensors, 'tensor')}"
    return visible(f"{report.id} can take the place of {report.previous}: {changed}; the epoch is {report.epoch}")


def _swap_in_words(report: SwapReport) -> str:
    times = report.milliseconds
    if report.id == report.previous:
        return f"{visible(report.id)} was active already, epoch {report.epoch}"
    steps = ", ".join(f"{name} {getattr(times, name):.1f}" for name in ("stage", "pause", "apply", "verify"))
    told = [f"{report.id} in place of {report.previous}, epoch {report.epoch}", f"{times.total:.1f} ms: {steps}"]
    if report.modules:
        told.append(f"verified in {count(report.verified, 'place')}")
    told += [f"not verified: {count(each.parts, 'part')}: {one_line(each.reason)}" for each in report.unverified]
    return "\n".join(map(visible, told))
