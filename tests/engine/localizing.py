# SPDX-License-Identifier: Apache-2.0
"""Searches on offline vLLM engines, one after another in a process of their own.

As a program it takes a JSON list of searches on stdin and writes a JSON list of what came of them to the file named by
its argument.
"""

from __future__ import annotations

import gc
import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.engine.program import run_program
from tests.engine.settled import in_turn


@dataclass
class Task:
    """One search.

    Attributes:
        model: the folder.
        out: where the search is kept.
        settings: that aren't the defaults.
        budget: as the command line has it.
        options: for `vllm.LLM`.
    """

    model: str
    out: str
    settings: dict[str, Any]
    budget: str
    options: dict[str, Any] = field(default_factory=dict)


def run_searches(*tasks: Task) -> list[dict[str, Any]]:
    """What came of each search: the units with their gains, whether they hold up, and the reason where there are none."""
    found, _ = run_program("-m", "tests.engine.localizing", given=[asdict(task) for task in tasks])
    outcomes: list[dict[str, Any]] = json.loads(found)
    return outcomes


def _run(task: Task) -> dict[str, Any]:
    from vllm import LLM

    from vllm_surgery.localization.pipeline import SearchRun, localize
    from vllm_surgery.localization.report import write_report
    from vllm_surgery.localization.search.budget import Budget
    from vllm_surgery.localization.settings import SearchSettings
    from vllm_surgery.model.checkpoint import ModelFolder

    llm = LLM(
        task.model,
        dtype="float32",
        enforce_eager=True,
        enable_prefix_caching=False,
        kv_cache_memory_bytes=1 << 27,
        max_model_len=512,
        **task.options,
    )
    settings, run = SearchSettings(**task.settings), SearchRun(Path(task.out), "found", quiet=True)
    outcome = localize(llm, ModelFolder(task.model), settings, Budget.parse(task.budget), run)
    write_report(outcome, settings, run)
    found, best = outcome.search, outcome.search.best
    del llm
    gc.collect()
    return {
        "units": None if best is None else [[key.layer, key.index] for key, _ in best.candidate.gains],
        "gains": None if best is None else [gain for _, gain in best.candidate.gains],
        "kept": [layer for _, layer in found.kept],
        "why_none": found.why_none,
        "patch": None if outcome.patch is None else str(outcome.patch),
        "answers": outcome.spent_answers,
        "looks": found.evaluations,
        "ways": found.ways,
        "notes": [] if found.attribution is None else found.attribution.notes,
        "refused": found.refused,
        "first": [] if found.attribution is None else [str(one) for one in found.attribution.singles[:8]],
    }


def main() -> None:
    found = list(in_turn(_run, [Task(**task) for task in json.load(sys.stdin)]))
    Path(sys.argv[1]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
