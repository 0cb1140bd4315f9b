# SPDX-License-Identifier: Apache-2.0
"""The trial of a cure on one real model: a patch, shams, a penalty and rescues beside the model as it is, in one batch.

    python -m tests.benchmarks.trial --model DIR --out DIR [--patch FILE] [--form completion] [--seconds N]
        [--rescues ACTIONS...] [--no-penalty] [--streamed [--hold-back N]] [--paper] [options of evaluate]

Serves the model with slots and ready to rescue, asks the protocol `wide` (docs/evaluate.md has the rule by which it is
cut), then puts the patch into the weights of a server without slots and asks some of it again, which must give the same
tokens. A trial that was stopped, or ran out of its seconds, goes on with the same command; one that is complete is only
told again. `--paper` asks what arXiv 2606.13705 asks: its eight subjects, eight seeds each, its sampling and budget.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from tests.benchmarks import trial_report
from tests.engine.processes import COMMAND
from tests.engine.server import running_server
from vllm_surgery.evaluation.setup import PENALTY, token_table
from vllm_surgery.patch.files import load_patch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SERVED = (
    "--dtype", "float32", "--max-model-len", "2048", "--enforce-eager", "--kv-cache-memory-bytes", "2147483648",
    "--max-num-seqs", "64", "--max-num-batched-tokens", "16384",
)  # fmt: skip
"""As many tokens a step as all prompts can have: a seeded request of which a step computes a part ends vLLM 0.32's engine
on CPUs ("CPU Generator does not use offset")."""
SHAMS = 1
"""Each costs a whole arm. The trial of a search has three."""
CONCURRENCY = 56
PAPER = ("--protocol", "default", "--cells", "sampled", "--probes", "paper", "--concurrency", "24")
"""The paper's table. Fewer at once: so long answers of more than that don't fit into the cache."""
AGREEING = 16
"""Prompts of which the patch in a slot and the one in the weights must give the same tokens."""
PENALIZED = f"penalty:{PENALTY:g}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.trial", description=_first_line())
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--patch", type=Path)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop asking after so long")
    parser.add_argument("--rescues", nargs="*", metavar="ACTIONS", help="these, in place of all three; none at all")
    parser.add_argument("--no-penalty", action="store_true", help="no penalty on all answers")
    parser.add_argument("--streamed", action="store_true", help="an arm more: the rescue by a penalty, of streams")
    parser.add_argument("--hold-back", type=int, default=0, metavar="N", help="streams are held back by N tokens")
    parser.add_argument("--paper", action="store_true", help="the paper's prompts, seeds, sampling and budget")
    parser.add_argument("--tell-only", action="store_true", help="judge what is there; ask nobody")
    args, rest = parser.parse_known_args()
    rest = [*(PAPER if args.paper else ()), *rest]
    ends = time.monotonic() + args.seconds
    if not args.tell_only:
        code = _ask(args, rest, ends)
        if code in {0, 1} and args.patch is not None and not args.paper:
            code = _ask_weights(args, rest, ends)
        if code not in {0, 1, None}:
            return code
    print(trial_report.write(args.out, token_table(args.model)))
    return 0


def _ask(args: argparse.Namespace, rest: Sequence[str], ends: float) -> int | None:
    """All arms on one server; None where the time ran out."""
    patch = [] if args.patch is None else ["--patch", str(args.patch), "--shams", str(SHAMS)]
    penalty = ["--no-penalty"] if args.no_penalty else ["--penalty", f"{PENALTY:g}"]
    rescues = _rescues(args)
    arms = [*patch, *penalty, *(word for action in rescues for word in ("--rescue", action))]
    arms += ["--rescue-streamed", PENALIZED] if args.streamed else []
    with _ready_to_rescue(args.model, args.patch, rescues, args.hold_back) as url:
        return _evaluate(url, args.model, args.out, [*arms, *rest], ends)


def _rescues(args: argparse.Namespace) -> list[str]:
    if args.rescues is not None:
        return list(args.rescues)
    own = [] if args.patch is None else [f"patch:{load_patch(str(args.patch)).name}"]
    return ["stop", PENALIZED, *own]


def _ask_weights(args: argparse.Namespace, rest: Sequence[str], ends: float) -> int | None:
    """The patch in the weights, on a server without slots; None where the time ran out."""
    asked = ["--patch", str(args.patch), "--shams", "0", "--no-penalty", "--cells", "greedy", "--first", str(AGREEING)]
    with tempfile.TemporaryDirectory() as work, running_server(Path(work), args.model, *SERVED) as server:
        return _evaluate(server.url, args.model, args.out / trial_report.WEIGHTS, [*asked, *rest], ends)


@contextmanager
def _ready_to_rescue(model: str, patch: Path | None, actions: Sequence[str], held_back: int) -> Iterator[str]:
    """A server with slots, the patch in one of them, on which requests may ask for these rescues."""
    rescue = {"on_loop": "observe", "on_loop_allowed": sorted({*actions, PENALIZED}), "on_loop_hold_back": held_back}
    settings = {"vllm_surgery": rescue}
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "patches"
        folder.mkdir()
        slots = ("--patch-slots", str(2 + SHAMS), "--patch-dir", str(folder))
        names = [] if patch is None else [load_patch(str(patch)).name]
        for name in names:
            shutil.copy(str(patch), folder / f"{name}.yaml")
        with running_server(Path(work), model, *SERVED, *slots, "--additional-config", json.dumps(settings)) as server:
            if names:
                httpx.put(f"{server.url}/v1/surgery", json={"fill": names}, timeout=None).raise_for_status()
            yield server.url


def _evaluate(url: str, model: str, out: Path, words: Sequence[str], ends: float) -> int | None:
    command = [COMMAND, "evaluate", "--url", url, "--model", model, "--protocol", "wide", "--out", str(out)]
    command += ["--concurrency", str(CONCURRENCY), *words]
    left = ends - time.monotonic()
    with subprocess.Popen(command) as asking:
        try:
            return asking.wait(None if left == float("inf") else max(0.0, left))
        except subprocess.TimeoutExpired:
            asking.terminate()
            asking.wait()
            return None


def _first_line() -> str:
    return (__doc__ or "").partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main())
