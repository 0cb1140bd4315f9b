# SPDX-License-Identifier: Apache-2.0
"""`vllm-surgery detect`: do these answers loop?"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_surgery.cli.options import add_command
from vllm_surgery.errors import UsageError

if TYPE_CHECKING:
    from vllm_surgery.cli.options import Subparsers

_STDIN = "-"
_MAX_BYTES = 1 << 30
"""Of the input, which is read whole: a pipe may never end."""


def add_to(subparsers: Subparsers) -> None:
    """Adds the command."""
    parser = add_command(
        subparsers,
        "detect",
        run,
        "Find loops in a text, or in JSON lines or a JSON array of texts, token ids, OpenAI responses, conversations; "
        "one JSON report a line.",
    )
    parser.add_argument("file", nargs="?", default=_STDIN, metavar="FILE", help="what to read (default: stdin)")
    parser.add_argument(
        "--tokenizer",
        metavar="DIR",
        help="a Hugging Face tokenizer's folder; without one, token ids are searched for verbatim loops only, and text "
        "is cut into words",
    )
    parser.add_argument(
        "--max-loop-rate", type=_rate, metavar="R", help="exit code 1 if a larger share of the answers loops (0 to 1)"
    )
    parser.add_argument("--json", action="store_true", help="report errors as JSON too")


def run(args: argparse.Namespace, _rest: list[str]) -> int:
    """Carries the command out."""
    from vllm_surgery.loops.answer_files import read_answers  # Here, since Numba takes half a second to import.
    from vllm_surgery.loops.report import report_of

    source, text = _read(args.file)
    answers = looped = 0
    for answer in read_answers(text, source, args.tokenizer):
        report = report_of(answer)
        print(json.dumps(report, ensure_ascii=False))
        answers += 1
        looped += bool(report["loops"])
    return int(args.max_loop_rate is not None and looped > args.max_loop_rate * answers)


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0 <= rate <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return rate


def _read(file: str) -> tuple[str, str]:
    source = "stdin" if file == _STDIN else file
    try:
        with nullcontext(sys.stdin.buffer) if file == _STDIN else Path(file).open("rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise UsageError(f"{source}: larger than {_MAX_BYTES >> 20} MiB; split it")
        return source, data.decode("utf-8")
    except FileNotFoundError:
        raise UsageError(f"{source}: no such file") from None
    except OSError as error:
        raise UsageError(f"{source}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{source}: not UTF-8 at byte {error.start}") from None
