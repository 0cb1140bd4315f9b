# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from vllm_surgery.errors import UsageError, visible
from vllm_surgery.model.checkpoint import ModelFolder
from vllm_surgery.model.hub import fetched, is_name, local_path

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable

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


def open_model(word: str) -> ModelFolder:
    """The model that a command names: its folder, or its name on the Hub, from where it comes if it isn't here.

    Raises:
        UsageError: there is none.
        CheckpointError: it is no model's folder.
    """
    path = local_path(word)
    return ModelFolder(fetched(word) if path == Path(word) and not path.exists() and is_name(word) else path)


def check_out(out: Path | None, *, files: Iterable[Path] = (), models: Iterable[Path] = ()) -> None:
    """Refuses to write over what a command reads.

    Args:
        out: where a file is to be written; None for nowhere.
        files: that the command is given.
        models: folders of the models that it is given.

    Raises:
        UsageError: `out` is one of the files, or a file of one of the models.
    """
    if out is None or not out.exists():
        return
    for file in files:
        if file.exists() and out.samefile(file):
            raise UsageError(f"{out}: is what this command reads; write to another file")
    for model in models:
        if model.is_dir() and model.resolve() in out.resolve().parents:
            raise UsageError(f"{out}: is a file of the model; write to another file")


def add_json(parser: argparse.ArgumentParser) -> None:
    """The option ``--json``."""
    parser.add_argument("--json", action="store_true", help="report as JSON")


def add_out(parser: argparse.ArgumentParser, default: str, job: str) -> None:
    """The option ``--out``, for a job whose files let it go on."""
    text = f"where everything goes; a {job} that was stopped goes on from there (default: %(default)s)"
    parser.add_argument("--out", type=Path, default=Path(default), metavar="DIR", help=text)


def flag(name: str) -> str:
    """The option whose value `argparse` keeps under `name`."""
    return f"--{name.replace('_', '-')}"


def tell(line: str, *, aside: bool = False) -> None:
    """Prints a line for people, with whatever a terminal would obey in it spelled out: files and their names say it.

    Args:
        line: what is told.
        aside: whether it goes to stderr, since it isn't the command's result.
    """
    print(visible(line), file=sys.stderr if aside else sys.stdout)


def words_of(args: argparse.Namespace, names: Iterable[str]) -> list[str]:
    """The options that were given, as they would be typed again, files without their folders."""
    words: list[str] = []
    for name in names:
        value = getattr(args, name)
        for one in value if isinstance(value, list) else [value]:
            if one is not None and one is not False:
                words += [flag(name)] if one is True else [flag(name), Path(str(one)).name]
    return words
