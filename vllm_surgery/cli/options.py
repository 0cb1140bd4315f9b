# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
    Run: TypeAlias = Callable[[argparse.Namespace, list[str]], int]


def add_command(
    subparsers: Subparsers, name: str, run: Run, summary: str, *, takes_rest: bool = False, **options: Any
) -> argparse.ArgumentParser:
    """A parser for the command `name`, which `run` carries out.

    Args:
        subparsers: where it goes.
        name: what the user types.
        run: takes the parsed arguments and those that no option claimed; gives the exit code.
        summary: one line for the help.
        takes_rest: whether arguments that no option claims are the command's own business.
        options: for `argparse.ArgumentParser`.
    """
    parser = subparsers.add_parser(name, help=summary, description=summary, allow_abbrev=False, **options)
    parser.set_defaults(run=run, takes_rest=takes_rest)
    return parser


def add_json(parser: argparse.ArgumentParser) -> None:
    """The option ``--json``."""
    parser.add_argument("--json", action="store_true", help="report as JSON")
