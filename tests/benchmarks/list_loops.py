# SPDX-License-Identifier: Apache-2.0
"""Does a patch cure loops on list prompts, and what does it cost? Patch, no patch and sham patches, paired by prompt.

    python -m tests.benchmarks.list_loops --model DIR --patch FILE [--json OUT]

Prints a Markdown report. With ``--again OUT`` it judges the answers of an earlier run once more and runs no model.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.divergence import Reply
from tests.benchmarks.list_report import render
from tests.benchmarks.shams import plan_of
from tests.benchmarks.short_lists import ShortList, load_short_lists
from tests.benchmarks.trial import Trial, read_lines, run_trial
from vllm_surgery.checkpoint import ModelFolder
from vllm_surgery.errors import SurgeryError
from vllm_surgery.patch import load_patch

DATA = Path(__file__).parent / "data"


def main() -> int:
    arguments = _parser().parse_args()
    short_lists = load_short_lists(DATA / "short_lists.yaml")
    try:
        trial = Trial.from_json(arguments.again.read_text()) if arguments.again else _run(arguments, short_lists)
    except (SurgeryError, OSError, subprocess.CalledProcessError) as error:
        print(error, file=sys.stderr)
        return 1
    if arguments.json:
        arguments.json.write_text(trial.to_json())
    print(render(trial, short_lists))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.list_loops", description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, help="folder of the model")
    parser.add_argument("--patch", type=Path, help="patch file; its edits must be of neurons")
    parser.add_argument("--prompts", type=int, help="only the first so many prompts")
    parser.add_argument(
        "--prompt-file", type=Path, default=DATA / "list_prompts.txt", help="a prompt a line (default: %(default)s)"
    )
    parser.add_argument("--shams", type=int, default=5, help="number of sham patches (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=20261124, help="chooses the shams' neurons (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=256, help="of one answer (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="where all answers and figures go")
    parser.add_argument("--again", type=Path, metavar="OUT", help="judge the answers in this file; run nothing")
    return parser


def _run(arguments: argparse.Namespace, short_lists: list[ShortList]) -> Trial:
    if not (arguments.model and arguments.patch):
        raise SurgeryError("list_loops needs --model and --patch, or --again")
    folder, patch = ModelFolder(arguments.model), load_patch(arguments.patch)
    plan_of(patch, folder)
    return run_trial(
        folder,
        patch,
        read_lines(arguments.prompt_file)[: arguments.prompts],
        [one.prompt for one in short_lists],
        [Reply.load(file) for file in sorted((DATA / "replies").glob("*.txt"))],
        shams=arguments.shams,
        seed=arguments.seed,
        max_tokens=arguments.max_tokens,
    )


if __name__ == "__main__":
    sys.exit(main())
