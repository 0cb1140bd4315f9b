# SPDX-License-Identifier: Apache-2.0
"""The command line: `vllm-surgery COMMAND …`.

Exit codes: 0 done; 1 the answer is no (a patch or a check failed, a server that doesn't answer); 2 wrong usage, a
missing file, or a result that can't be printed; 130 interrupted. Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_surgery.cli import (
    bake,
    canary,
    check,
    demo_model,
    detect,
    diff,
    doctor,
    evaluate,
    export,
    export_lora,
    import_,
    localize,
    patches,
    push,
    schema,
    seal,
    serve,
    show,
    status,
    swap,
    watch,
)
from vllm_surgery.errors import FleetError, PatchError, ServerError, SurgeryError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

_COMMANDS = (
    serve,
    demo_model,
    check,
    show,
    schema,
    seal,
    bake,
    diff,
    import_,
    export,
    export_lora,
    push,
    status,
    swap,
    canary,
    patches,
    watch,
    detect,
    evaluate,
    localize,
    doctor,
)
_EXIT_NO, _EXIT_USAGE, _EXIT_INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; gives its exit code. Errors that a user can cause are one line on stderr, no traceback."""
    _prepare_output()
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if rest and not args.takes_rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    code = 0
    try:
        try:
            code = args.run(args, rest)
        except SurgeryError as error:
            code = _exit_code(error)
            _report(error, as_json=getattr(args, "json", False))
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED
    except BrokenPipeError:  # The reader of our output went away, such as `head`. Its exit code says it all.
        _print_no_more()
    except OSError as error:
        if error.filename is not None:  # Of a file. What can't be printed has no name.
            raise
        _print_no_more()
        print(f"vllm-surgery: error: can't print: {error.strerror or error}", file=sys.stderr)
        return _EXIT_USAGE
    return code


def _prepare_output() -> None:
    """Sees that whatever is said can be printed: a name of a file that is no text, and where nobody listens."""
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - until the process ends
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _print_no_more() -> None:
    """Python would try to print the rest when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vllm-surgery", description="Edit a served model's neurons and experts from a small text file."
    )
    parser.add_argument("--version", action="version", version=f"vllm-surgery {version('vllm-surgery')}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_to(subparsers)
    return parser


def _exit_code(error: SurgeryError) -> int:
    return _EXIT_USAGE if isinstance(error, UsageError) else _EXIT_NO


def _report(error: SurgeryError, as_json: bool) -> None:
    if as_json:
        content: dict[str, object] = {"type": type(error).__name__, "message": str(error)}
        if isinstance(error, PatchError):
            content |= {"source": error.source, "place": error.place, "detail": error.detail}
        if isinstance(error, ServerError):
            content |= {"status": error.status, "kind": error.kind}
        if isinstance(error, FleetError):
            content |= {"servers": error.servers}
        print(json.dumps({"ok": False, "error": content}, indent=2))
    else:
        print(f"vllm-surgery: error: {error}", file=sys.stderr)
