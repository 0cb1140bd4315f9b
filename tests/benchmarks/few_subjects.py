# SPDX-License-Identifier: Apache-2.0
"""How often the rule of `evaluate` calls an edit a help that is none, by the number of subjects.

    python -m tests.benchmarks.few_subjects [--trials N]

Each subject has a rate of loops of its own under the patch and under each sham, all from the same distribution as without a
patch, so that whatever is found is chance. The rule is asked as if it had no least number of subjects: the table is what
`MIN_SUBJECTS` was chosen by.
"""

from __future__ import annotations

import argparse
import random
import sys
from dataclasses import dataclass
from unittest.mock import patch

from tests.benchmarks.markdown import table
from vllm_surgery.evaluation.analysis import verdict
from vllm_surgery.evaluation.analysis.outcomes import Rates
from vllm_surgery.evaluation.analysis.statistics import compare
from vllm_surgery.intervals import wilson

SUBJECTS = (1, 2, 3, 4, 5, 6, 8, 12)
TRIALS = 10_000
SHAMS = 3
SEED = 20261202


@dataclass(frozen=True)
class Asking:
    """How a trial asks.

    Attributes:
        seeds: answers about each subject.
        moves: whether each arm moves the rate of each subject, up or down; else all arms have the subject's own.
    """

    seeds: int
    moves: bool


ASKED = {
    "one answer each": Asking(1, moves=False),
    "eight, the arms alike": Asking(8, moves=False),
    "eight, each arm moves each subject": Asking(8, moves=True),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.few_subjects")
    parser.add_argument("--trials", type=int, default=TRIALS)
    args = parser.parse_args()
    rows = [[str(count), *(_share(asking, count, args.trials) for asking in ASKED.values())] for count in SUBJECTS]
    print("\n".join(table(["subjects", *ASKED], rows)))
    return 0


def _share(asking: Asking, subjects: int, trials: int) -> str:
    found = wilson(false_alarms(asking, subjects, trials), trials)
    return f"{100 * found.value:.1f} % ({100 * found.low:.1f} to {100 * found.high:.1f})"


def false_alarms(asking: Asking, subjects: int, trials: int) -> int:
    """Of so many trials those that end in "fewer loops", were there no least number of subjects."""
    source = random.Random(SEED)
    with patch.object(verdict, "MIN_SUBJECTS", 1):
        return sum(_is_called_a_help(source, asking, subjects) for _ in range(trials))


def _is_called_a_help(source: random.Random, asking: Asking, subjects: int) -> bool:
    base, patched, *shams = _answers(source, asking, subjects)
    names = [str(subject) for subject in range(subjects) for _ in range(asking.seeds)]
    if not sum(patched) < min(sum(base), sum(map(sum, shams)) / SHAMS):  # Most aren't, and the rule takes time.
        return False
    ends = compare(base, patched, names)
    before = [looped for sham in shams for looped in sham]
    against = compare(before, patched * SHAMS, names * SHAMS)
    rates = Rates(len(base), {}, wilson(sum(base), len(base)), 0, wilson(sum(base), len(base)), 0, 1, 0, 1)
    found = verdict.judge(verdict.Evidence(ends, ends, against, [], None, (rates, rates)))
    return found.word == "fewer loops"


def _answers(source: random.Random, asking: Asking, subjects: int) -> list[list[bool]]:
    """Whether each answer loops: unpatched, under the patch, and under each sham."""
    own = [source.random() for _ in range(subjects)]
    arms = []
    for _ in range(2 + SHAMS):
        rates = [source.random() for _ in own] if asking.moves else own
        arms.append([source.random() < rate for rate in rates for _ in range(asking.seeds)])
    return arms


if __name__ == "__main__":
    sys.exit(main())
