# SPDX-License-Identifier: Apache-2.0
"""`vllm-surgery serve`: vLLM's own server, with patches."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_surgery.cli.options import add_command
from vllm_surgery.client.protocol import MOST_HELD_BACK, MOST_SLOTS, SURGERY_KEY_VARIABLE
from vllm_surgery.errors import UsageError, check_key
from vllm_surgery.imports.loading import load_patches
from vllm_surgery.imports.remote import is_address
from vllm_surgery.imports.remote_folders import patch_folder
from vllm_surgery.installed import require_vllm
from vllm_surgery.model.hub import inner_path

if TYPE_CHECKING:
    import argparse

    from vllm_surgery.cli.options import Subparsers

_HELP = ("-h", "--help")


def add_to(subparsers: Subparsers) -> None:
    """Adds the command."""
    parser = add_command(
        subparsers,
        "serve",
        run,
        "Start vLLM's OpenAI-compatible server with patches applied to the model.",
        takes_rest=True,
        add_help=False,  # A bare --help shows both sets of options; --help=GROUP is vLLM's alone.
        usage="vllm-surgery serve MODEL [--patch FILE]... [--patch-dir DIR]... [--watch] [--patch-slots N] "
        "[--on-loop ACTION[,ACTION]]... [--on-loop-hold-back N] [--surgery-key KEY] [any option of `vllm serve`]",
    )
    parser.add_argument(
        "--patch", action="append", default=[], metavar="FILE", help="a patch file; may be given more than once"
    )
    parser.add_argument(
        "--patch-dir",
        action="append",
        default=[],
        metavar="DIR",
        help="a folder whose patches can be swapped in by name while the server runs; may be given more than once",
    )
    parser.add_argument("--watch", action="store_true", help="follow the patch files: an edit is swapped in")
    parser.add_argument(
        "--patch-slots",
        type=int,
        default=0,
        metavar="N",
        help="serve up to N patches beside the unpatched model: a request chooses one as MODEL@NAME, swaps hold up no "
        "request, and --patch is the default of requests that choose none (default: 0, patches are in the weights)",
    )
    parser.add_argument(
        "--surgery-key",
        metavar="KEY",
        help=f"what changes of patches over HTTP ask for, in place of the API key (default: ${SURGERY_KEY_VARIABLE})",
    )
    parser.add_argument(
        "--on-loop",
        action="append",
        default=[],
        metavar="ACTION",
        help="what to do with an answer that loops, and with no other: stop, or let it go on with penalty:1.15, at "
        "temperature:0.7 or under patch:NAME; several with commas between are tried in turn; KIND=ACTION is for one "
        "kind of loop; observe: only what requests ask for (default: nothing, and requests can't ask)",
    )
    parser.add_argument(
        "--on-loop-hold-back",
        type=int,
        default=0,
        metavar="N",
        help="with --on-loop: send streamed answers N tokens late, so that as many of a loop can be taken back before "
        "the client has them (default: 0)",
    )
    parser.set_defaults(print_help=parser.print_help)


def run(args: argparse.Namespace, rest: list[str]) -> int:
    """Carries the command out: returns when the server was stopped."""
    if any(word in rest for word in _HELP):
        args.print_help()
        print("\nAll other options are those of `vllm serve`:\n")
    _check_options(args)
    patches = load_patches(args.patch)
    patch_dirs = [patch_folder(folder) for folder in args.patch_dir]
    watch = [Path(file).absolute() for file in args.patch] if args.watch else []
    require_vllm("serve")
    from vllm_surgery.engine.serve import serve

    if args.surgery_key is not None:  # Like vLLM's own key: for all processes, and never in a config that is logged.
        os.environ[SURGERY_KEY_VARIABLE] = args.surgery_key
    more = {
        "slots": args.patch_slots or None,
        "on_loop": on_loop_setting(args.on_loop),
        "on_loop_hold_back": args.on_loop_hold_back or None,
    }
    given = {key: value for key, value in more.items() if value is not None}
    serve(patches, list(map(inner_path, rest)), patch_dirs=patch_dirs, watch=watch, more=given)
    return 0


def _check_options(args: argparse.Namespace) -> None:
    if args.watch and not args.patch:
        raise UsageError("--watch needs --patch: it follows the files that are given there")
    if not 0 <= args.patch_slots <= MOST_SLOTS:
        raise UsageError(f"--patch-slots: from 0 to {MOST_SLOTS}")
    if args.watch and (addresses := [word for word in args.patch if is_address(word)]):
        raise UsageError(f"--watch: {addresses[0]} is an address; only files are followed")
    if not 0 <= args.on_loop_hold_back <= MOST_HELD_BACK:
        raise UsageError(f"--on-loop-hold-back: from 0 to {MOST_HELD_BACK}")
    if args.on_loop_hold_back and not args.on_loop:
        raise UsageError("--on-loop-hold-back needs --on-loop: nothing else takes tokens back")
    check_key(args.surgery_key, "the surgery key")


def on_loop_setting(given: list[str]) -> str | dict[str, str | list[str]] | None:
    """The setting that the options come to."""
    if not given:
        return None
    by_kind = dict(item.split("=", 1) for item in given if "=" in item)
    plain = [item for item in given if "=" not in item]
    if by_kind and plain:
        raise UsageError("--on-loop: give actions for all kinds of loop, or KIND=ACTION for each")
    if len(plain) > 1 or len(by_kind) + len(plain) < len(given):
        raise UsageError("--on-loop: given twice; put commas between actions that are tried in turn")
    return plain[0] if plain else dict(by_kind)
