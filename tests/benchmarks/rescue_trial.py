# SPDX-License-Identifier: Apache-2.0
"""What rescues do to a real model's answers: serves it ready to rescue, and runs `vllm-surgery evaluate` on it.

    python -m tests.benchmarks.rescue_trial --model DIR --patch FILE --out DIR [options of evaluate]

Arms: the model as it is, the patch in a slot, repetition penalty 1.15 on all answers, and rescues by `stop`, by the penalty, by
both in turn, and by the patch. Prints a Markdown table: loops as `evaluate` counts them, and how many of the answers
that don't loop unpatched are the same, token for token. A trial that was stopped goes on with the same command, and one
that is complete is only told again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import httpx

from tests.benchmarks.evidence import KV_CACHE, SERVED
from tests.benchmarks.markdown import table
from tests.engine.server import COMMAND, running_server
from vllm_surgery.intervals import wilson
from vllm_surgery.patch.files import load_patch

if TYPE_CHECKING:
    from collections.abc import Sequence

PENALTY = "penalty:1.15"
ASKED = ("lists:held-out", "healthy", "skills")
PROTOCOL = ("--protocol", "small", "--seeds", "1", "--shams", "0", "--concurrency", "24", "--penalty", "1.15")
LISTS = "lists:held-out"
"""The probes whose answers may loop; of the others it is only asked whether they stay what they are."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.rescue_trial", description=_first_line())
    parser.add_argument("--model", required=True)
    parser.add_argument("--patch", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args, rest = parser.parse_known_args()
    code = _ask(args.model, args.patch, args.out, rest)
    if code in (0, 1):  # 1: the patch in the slot is no cure by the rule of `evaluate`, which isn't what is asked here.
        print("\n".join(render(_records(args.out / "answers.jsonl"))))
        return 0
    return code


def _ask(model: str, patch: Path, out: Path, rest: Sequence[str]) -> int:
    name = load_patch(str(patch)).name
    actions = ["stop", PENALTY, f"{PENALTY},stop", f"patch:{name}"]
    settings = {"vllm_surgery": {"on_loop": "observe", "on_loop_allowed": [PENALTY, f"patch:{name}"]}}
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "patches"
        folder.mkdir()
        shutil.copy(patch, folder / f"{name}.yaml")
        slots = ("--patch-slots", "3", "--patch-dir", str(folder), "--additional-config", json.dumps(settings))
        with running_server(Path(work), model, *SERVED, *KV_CACHE, *slots) as server:
            httpx.put(f"{server.url}/v1/surgery", json={"fill": [name]}, timeout=None).raise_for_status()
            asked = [word for probes in ASKED for word in ("--probes", probes)]
            arms = ["--patch", name, *(word for action in actions for word in ("--rescue", action))]
            command = [COMMAND, "evaluate", "--url", server.url, *PROTOCOL, *asked, *arms, "--out", str(out), *rest]
            return subprocess.run(command, check=False).returncode


def _records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def render(records: Sequence[dict[str, Any]]) -> list[str]:
    """The report.

    Args:
        records: of `answers.jsonl`.
    """
    asked: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = defaultdict(dict)
    for one in records:
        asked[one["cell"], one["set"], one["probe"], one["seed"]][one["arm"]] = one
    sound = [arms for arms in asked.values() if not arms["unpatched"]["loops"]]
    rows = []
    arms_asked = dict.fromkeys(["unpatched", *(one["arm"] for one in records)])
    for arm in arms_asked:
        lists = [one for one in records if one["arm"] == arm and one["set"] == LISTS]
        looped = sum(any(loop["outcome"] == "terminal" for loop in one["loops"]) for one in lists)
        rate = wilson(looped, len(lists))
        same = sum(arms[arm]["token_ids"] == arms["unpatched"]["token_ids"] for arms in sound)
        rows.append(
            [
                arm,
                f"{looped} of {len(lists)}: {100 * rate.value:.0f} % ({100 * rate.low:.0f} to {100 * rate.high:.0f})",
                str(sum(bool(one["loops"]) for one in lists)),
                f"{mean(len(one['token_ids']) for one in lists):.0f}",
                f"{same} of {len(sound)}",
            ]
        )
    head = [
        "arm",
        "lists that end in a loop",
        "that loop anywhere",
        "tokens an answer",
        "sound answers that are the same",
    ]
    return table(head, rows)


def _first_line() -> str:
    return (__doc__ or "").partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main())
