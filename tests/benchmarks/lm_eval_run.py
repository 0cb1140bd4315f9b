# SPDX-License-Identifier: Apache-2.0
"""lm-evaluation-harness on one server with slots, unpatched and under a patch, and what `evaluate` makes of its folders.

    python -m tests.benchmarks.lm_eval_run --model DIR --patch FILE --out DIR [--lm-eval COMMAND] [--lists 24]

The harness isn't among this project's requirements: ``pip install lm_eval[api]``, here or in an environment of its own, whose
command `--lm-eval` then is. The tasks are this project's held-out probes, so nothing comes from the Hub: small questions with
an answer to write and to choose among four, and requests for long lists.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks.evidence import KV_CACHE, SERVED
from tests.engine.server import COMMAND, running_server
from vllm_surgery.evaluation.probes import load_probes
from vllm_surgery.patch.files import load_patch

if TYPE_CHECKING:
    from vllm_surgery.evaluation.probes import Probe

TASKS = Path(__file__).with_name("lm_eval_tasks")
NAMES = ("held_out_facts", "held_out_choices", "held_out_lists")
CHOICES = 4
SERVED_NAME = "smollm2"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.lm_eval_run", description=_first_line())
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--patch", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lm-eval", metavar="COMMAND", help="the harness's command (default: this Python's)")
    parser.add_argument("--lists", type=int, default=24, help="requests for lists (default: %(default)s)")
    args = parser.parse_args()
    if args.lm_eval is None and importlib.util.find_spec("lm_eval") is None:
        parser.error("lm-evaluation-harness isn't installed here: pip install lm_eval[api], or say --lm-eval COMMAND")
    write_documents(args.out, args.lists)
    name = load_patch(str(args.patch)).name
    arms = {"unpatched": f"{SERVED_NAME}@none", name: f"{SERVED_NAME}@{name}"}
    with (
        tempfile.TemporaryDirectory() as work,
        running_server(Path(work), str(args.model), *SERVED, *KV_CACHE, "--patch-slots", "2") as server,
    ):
        subprocess.run([COMMAND, "swap", "--url", server.url, "--fill", str(args.patch.resolve())], check=True)
        for arm, model in arms.items():
            _harness(args, model, server.url, args.out / arm)
    told = [word for arm in arms for word in ("--lm-eval", f"{arm}={args.out / arm}")]
    compare = [COMMAND, "evaluate", *told, "--tokenizer", str(args.model), "--out", str(args.out)]
    return subprocess.run(compare, check=False).returncode


def _first_line() -> str:
    return (__doc__ or "").split("\n")[0]


def _harness(args: argparse.Namespace, model: str, url: str, out: Path) -> None:
    about = {
        "model": model,
        "base_url": f"{url}/v1/completions",
        "tokenizer": args.model.resolve(),
        "tokenizer_backend": "huggingface",
        "num_concurrent": 24,
    }
    harness = shlex.split(args.lm_eval) if args.lm_eval else [sys.executable, "-m", "lm_eval"]
    command = [*harness, "--model", "local-completions", "--apply_chat_template", "--log_samples"]
    command += ["--model_args", ",".join(f"{key}={value}" for key, value in about.items())]
    command += ["--include_path", str(TASKS), "--tasks", ",".join(NAMES), "--output_path", str(out.resolve())]
    with tempfile.TemporaryDirectory() as cache:
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": cache}
        subprocess.run(command, check=True, cwd=args.out, env={**os.environ, **offline})


def write_documents(folder: Path, lists: int) -> None:
    """Writes the tasks' documents, from the thirds of the wide sets that are kept for judging."""
    facts = [(probe, answers) for probe in load_probes("wide-tasks:held-out").probes if (answers := _answers(probe))]
    asked = load_probes("wide-lists:held-out").probes[:lists]
    documents = {
        "facts": [{"question": probe.prompt, "answers": answers} for probe, answers in facts],
        "choices": choices(facts),
        "lists": [{"question": probe.prompt} for probe in asked],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in documents.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _answers(probe: Probe) -> list[str]:
    """What is right to say; nothing where that isn't a word or a number."""
    found: Any = probe.check
    if found is None or found.kind not in {"says", "number"} or getattr(found, "exact", False):
        return []
    return [f"{found.value:g}"] if found.kind == "number" else list(found.any)


def choices(facts: list[tuple[Probe, list[str]]]) -> list[dict[str, Any]]:
    """Each question with its first answer and three of other questions of its kind, as `capital` in `capital-spain`."""
    found = []
    for place, (probe, (answer, *_)) in enumerate(facts):
        turned = facts[place + 1 :] + facts[:place]
        kind = probe.id.split("-")[0]
        others = [other for one, (other, *_) in turned if one.id.split("-")[0] == kind and other != answer]
        offered = list(dict.fromkeys(others))[: CHOICES - 1]
        offered.insert(place % CHOICES, answer)
        found.append({"question": probe.prompt, "choices": offered, "answer": offered.index(answer)})
    return found


if __name__ == "__main__":
    sys.exit(main())
