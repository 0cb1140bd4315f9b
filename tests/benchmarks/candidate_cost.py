# SPDX-License-Identifier: Apache-2.0
"""How many candidates of a search are measured in a minute, side by side in slots and one by one by swaps.

    python -m tests.benchmarks.candidate_cost --model DIR --patch FILE [--rounds 4] [--candidates 8] [--max-tokens 96]

Two engines, each in a process of its own as a search has it, one with slots and one without, take turns (ABAB). In each
round both measure the same new candidates as closely as stage 3 does at first: a quarter of the probes' answers and of
the reference replies. Half of the candidates are single neurons, half are the patch in another dose. Prints Markdown:
candidates a minute, the ratio in each round, and how many greedy answers are the same both ways.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from tests.benchmarks.markdown import spread, table
from tests.benchmarks.shared_units import gains_of
from tests.engine.processes import ENVIRONMENT
from vllm_surgery.evaluation.trial import TrialFolder
from vllm_surgery.localization.candidates import Candidate
from vllm_surgery.localization.search.growth import weaker
from vllm_surgery.model.checkpoint import ModelFolder
from vllm_surgery.patch.files import load_patch
from vllm_surgery.patch.units import Unit

if TYPE_CHECKING:
    from collections.abc import Sequence

SLOTS, SWAPS = "slots", "swaps"
OPTIONS = ("--dtype", "float32", "--max-model-len", "2048", "--kv-cache-memory-bytes", "1073741824")
SEED = 20261129


class SearchEngine:
    """An engine in a process of its own, with the evaluator of a search around it.

    Args:
        model: the folder.
        slots: of the engine.
        folder: of the search; answers of the unpatched model that are there aren't asked for again.
        max_tokens: of an answer.
    """

    def __init__(self, model: Path, slots: int, folder: Path, max_tokens: int) -> None:
        given = {"model": str(model), "slots": slots, "folder": str(folder), "max_tokens": max_tokens}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.candidate_cost", "--engine", json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **ENVIRONMENT, "VLLM_LOGGING_LEVEL": "ERROR"},
        )
        self._told("ready")

    def seconds(self, candidates: Sequence[Candidate]) -> float:
        """How long it takes to measure these."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([one.to_data() for one in candidates]) + "\n")
        self._process.stdin.flush()
        return float(self._told("seconds"))

    def _told(self, word: str) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:  # Whatever else the engine writes there is skipped.
            if line.startswith(f"{word} "):
                return line.split()[1]
        raise AssertionError("the engine ended")

    def stop(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.candidate_cost", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--model", type=Path, help="folder of the model")
    parser.add_argument("--patch", type=Path, help="patch file, of neurons")
    parser.add_argument("--rounds", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--candidates", type=int, default=8, help="of a round, all in one batch (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=96, help="of an answer (default: %(default)s)")
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.engine:
        return _serve(**json.loads(arguments.engine))
    with tempfile.TemporaryDirectory() as work:
        print("\n".join(measure(arguments, Path(work))))
    return 0


def measure(arguments: argparse.Namespace, work: Path) -> list[str]:
    """The report of all rounds."""
    load = os.getloadavg()[0]
    folders = {SLOTS: work / SLOTS, SWAPS: work / SWAPS}
    engines = {}
    for way, slots in ((SWAPS, 0), (SLOTS, arguments.candidates)):
        engines[way] = SearchEngine(arguments.model, slots, folders[way], arguments.max_tokens)
        if way == SWAPS:
            shutil.copytree(folders[SWAPS], folders[SLOTS])
    rounds = candidates_of(arguments.model, arguments.patch, arguments.rounds, arguments.candidates)
    minutes: dict[str, list[float]] = {way: [] for way in engines}
    for candidates in tqdm(rounds, desc="rounds"):
        for way, engine in engines.items():
            minutes[way].append(engine.seconds(candidates) / 60)
    for engine in engines.values():
        engine.stop()
    a_minute = {way: [arguments.candidates / each for each in taken] for way, taken in minutes.items()}
    return render(a_minute, greedy(folders), load, arguments)


def candidates_of(model: Path, patch: Path, rounds: int, count: int) -> list[list[Candidate]]:
    """For each round other candidates: single neurons and doses of the patch by turns."""
    widths = ModelFolder(model).anatomy.widths()
    neurons = [Unit("neurons", layer, index) for layer, width in sorted(widths.items()) for index in range(width)]
    singles = iter(random.Random(SEED).sample(neurons, rounds * count))
    whole = Candidate.of(gains_of(load_patch(patch), widths), "patch")
    doses = iter([0.2 + 0.8 * number / (rounds * count) for number in range(rounds * count)])

    def dosed() -> Candidate:
        found = weaker(whole, next(doses))
        assert found is not None
        return found

    return [
        [dosed() if number % 2 else Candidate.of({next(singles): 0.0}, "single") for number in range(count)]
        for _ in range(rounds)
    ]


def greedy(folders: dict[str, Path]) -> tuple[int, int]:
    """How many greedy answers of candidates there are, and how many of them are the same both ways."""
    answers = {
        way: {tuple(one.key): one.token_ids for one in TrialFolder(folder).records() if one.key.cell == "greedy"}
        for way, folder in folders.items()
    }
    pairs = [(tokens, answers[SWAPS][key]) for key, tokens in answers[SLOTS].items() if key[0] != "none"]
    return len(pairs), sum(one == other for one, other in pairs)


def render(
    a_minute: dict[str, list[float]], same: tuple[int, int], load: float, arguments: argparse.Namespace
) -> list[str]:
    """The report."""
    ratios = [one / other for one, other in zip(a_minute[SLOTS], a_minute[SWAPS], strict=True)]
    rows = [[way, spread(a_minute[way], ".2f")] for way in (SWAPS, SLOTS)]
    return [
        f"# Candidates a minute, {arguments.candidates} at a time in slots and one by one by swaps",
        "",
        f"{load_patch(arguments.patch).id} in other doses, and single neurons; answers of {arguments.max_tokens} tokens; "
        f"{arguments.rounds} rounds. Load of the machine before: {load:.1f}.",
        "",
        *table(["", "candidates a minute: median, least to most"], rows),
        "",
        f"Slots over swaps in the same round: {spread(ratios, '.2f')}. Of {same[0]} greedy answers {same[1]} are the "
        "same both ways.",
    ]


def _serve(model: str, slots: int, folder: str, max_tokens: int) -> int:
    """An engine's process: measures the candidates that come on stdin, and says how long that took."""
    from vllm_surgery.engine.offline import start_engine, stop_engine
    from vllm_surgery.evaluation.backends.offline import OfflineBackend
    from vllm_surgery.localization.search.budget import Budget
    from vllm_surgery.localization.search.evaluator import CandidateEvaluator, EvalContext
    from vllm_surgery.localization.search.halving import rungs
    from vllm_surgery.localization.settings import SearchSettings
    from vllm_surgery.loops import TokenTable
    from vllm_surgery.planning.guard import guard_of

    llm = start_engine(model, OPTIONS, slots)
    table = TokenTable.from_tokenizer(llm.get_tokenizer())
    context = EvalContext(OfflineBackend(llm), table, Path(folder), guard_of(ModelFolder(model)), lambda *_: None)
    evaluator = CandidateEvaluator(context, SearchSettings(seeds=1, max_tokens=max_tokens), Budget())
    evaluator.baseline()
    fidelity = rungs(evaluator.full_fidelity)[0]
    print("ready now", flush=True)
    for line in sys.stdin:
        left = [Candidate.from_data(one) for one in json.loads(line)]
        started = time.perf_counter()
        while left:
            evaluator.measure_all(left[: evaluator.room], fidelity)
            left = left[evaluator.room :]
        print(f"seconds {time.perf_counter() - started}", flush=True)
    stop_engine(llm)
    return 0


if __name__ == "__main__":
    sys.exit(main())
