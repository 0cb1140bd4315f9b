# SPDX-License-Identifier: Apache-2.0
"""Evaluation of candidates: swapped in, asked, compared with the unpatched model, and every answer kept.

Nothing is asked twice: a search that was killed walks the same way again through what is known and goes on from there.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from vllm_surgery.evaluation.analysis.outcomes import loops
from vllm_surgery.evaluation.analysis.side_effects import Tasks, is_right, tasks
from vllm_surgery.evaluation.analysis.summary import PairKey
from vllm_surgery.evaluation.arms import Arm, unpatched
from vllm_surgery.evaluation.drift import Drift, drift
from vllm_surgery.evaluation.records import Record, append_lines, read_lines
from vllm_surgery.evaluation.trial import Trial, TrialFolder, record_of
from vllm_surgery.localization.search.measurements import Cost, LoopChange, Measurement
from vllm_surgery.localization.settings import GREEDY, SIDE
from vllm_surgery.patch.patch_set import NO_PATCH

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from vllm_surgery.evaluation.backends.base import Backend, Job, TokenLogprobs
    from vllm_surgery.evaluation.probes import Probe
    from vllm_surgery.localization.candidates import Candidate
    from vllm_surgery.localization.search.budget import Budget
    from vllm_surgery.localization.settings import SearchSettings
    from vllm_surgery.loops import TokenTable

DRIFTS_FILE, SPENT_FILE = "drifts.jsonl", "spent.jsonl"


class Fidelity(NamedTuple):
    """Fidelity of a measurement: how many answers and texts it takes.

    Attributes:
        answers: how many of the jobs for loops it answers.
        texts: on how many reference replies its log-probabilities are compared.
        tasks: whether short lists and skills are asked.
    """

    answers: int
    texts: int
    tasks: bool = False


@dataclass(frozen=True)
class EvalContext:
    """The surroundings of an evaluation: a backend, and a folder for the answers.

    Attributes:
        backend: who answers.
        table: what the model's tokens are as text.
        folder: where everything is kept.
        guard: of the candidates' patches.
        report: is told of each measurement: what was measured.
    """

    backend: Backend
    table: TokenTable
    folder: Path
    guard: Mapping[str, Any]
    report: Callable[[str], None]


class CandidateEvaluator:
    """Measures candidates on the search's own probes.

    Args:
        context: who answers, and where that is kept.
        settings: what is asked.
        budget: is charged for every measurement.
    """

    def __init__(self, context: EvalContext, settings: SearchSettings, budget: Budget) -> None:
        self._context, self._settings, self._budget = context, settings, budget
        self.trial = Trial.of(settings.search_protocol(), [unpatched()], {})
        self._kept = TrialFolder(context.folder)
        context.folder.mkdir(parents=True, exist_ok=True)
        self._answers: dict[str, dict[PairKey, Record]] = {}
        for record in self._kept.records():
            self._answers.setdefault(record.key.arm, {})[_pair_key(record)] = record
        lines = read_lines(context.folder / DRIFTS_FILE)
        self._drifts = {(line["candidate"], line["set"], line["text"]): _drift(line) for line in lines}
        self._logprobs: dict[tuple[str, str, str], TokenLogprobs] = self._kept.logprobs()
        self._spent: dict[tuple[Any, ...], tuple[float, int]] = {
            (line["candidate"], *line["look"]): (line["seconds"], line["answers"])
            for line in read_lines(context.folder / SPENT_FILE)
        }
        self._paid: set[tuple[Any, ...]] = set()
        self._owed = self._unpaid_answers()
        every = self.trial.jobs(self.trial.arms[0])
        self.jobs = [job for job in every if job.key.cell != SIDE]
        self.task_jobs = [job for job in every if job.key.cell == SIDE]
        self.texts = [(name, probe) for name in settings.text for probe in self.trial.sets[name].probes]

    @property
    def full_fidelity(self) -> Fidelity:
        """Every job for loops, every reference reply and all tasks."""
        return Fidelity(len(self.jobs), len(self.texts), tasks=bool(self.task_jobs))

    def baseline(self) -> list[Record]:
        """The unpatched model's answers, and from now on the jobs in the order in which they tell most.

        Two that loop, then one that doesn't, and so on, the greedy ones first: a measurement of low fidelity then sees
        loops that could go away, and answers that could begin to loop.
        """
        fidelity = self.full_fidelity
        self._charged(NO_PATCH, fidelity, lambda: self._ask(None, fidelity))
        known = self._answers[NO_PATCH]
        greedy = [job for job in self.jobs if job.key.cell == GREEDY]
        source = random.Random(self._settings.seed)  # noqa: S311 - a draw that anybody may repeat
        source.shuffle(greedy)
        looping = [job for job in greedy if loops(known[PairKey(*job.key[1:])])]
        others = [job for job in greedy if job not in looping]
        rest = [job for job in self.jobs if job.key.cell != GREEDY]
        source.shuffle(rest)
        self.jobs = [*_two_to_one(looping, others), *rest]
        return [known[PairKey(*job.key[1:])] for job in self.jobs]

    def right(self) -> list[Record]:
        """The unpatched model's right answers to tasks. Needs the baseline."""
        return [
            record
            for probes, jobs in self._task_sets()
            for probe, record in zip(probes, self._of(NO_PATCH, jobs), strict=True)
            if is_right(probe, record, run_code=False)
        ]

    def measure(self, candidate: Candidate, fidelity: Fidelity) -> Measurement:
        """Loops and cost of a candidate, as closely as `fidelity` says.

        Raises:
            SurgeryError: it can't be swapped in, or somebody couldn't answer.
        """
        self._charged(candidate.id, fidelity, lambda: self._ask(candidate, fidelity))
        self._context.report(str(candidate))
        jobs = self.jobs[: fidelity.answers]
        drifts = [self._drifts[candidate.id, name, probe.id] for name, probe in self.texts[: fidelity.texts]]
        cost = Cost.of(drifts, self._tasks(candidate) if fidelity.tasks else []) if drifts else None
        return Measurement(candidate, LoopChange.of(self._of(NO_PATCH, jobs), self._of(candidate.id, jobs)), cost)

    def _of(self, name: str, jobs: Sequence[Job]) -> list[Record]:
        return [self._answers[name][PairKey(*job.key[1:])] for job in jobs]

    def _tasks(self, candidate: Candidate) -> list[Tasks]:
        return [
            tasks(probes, self._of(NO_PATCH, jobs), self._of(candidate.id, jobs), run_code=False)
            for probes, jobs in self._task_sets()
        ]

    def _task_sets(self) -> list[tuple[list[Probe], list[Job]]]:
        """Of each set of tasks its probes, and the jobs that ask them, in the same order."""
        return [
            (self.trial.sets[name].probes, [job for job in self.task_jobs if job.key.set == name])
            for name in self._settings.tasks
        ]

    def _charged(self, name: str, fidelity: Fidelity, work: Callable[[], int]) -> None:
        """Does what is missing, and charges the budget once for it, now or as it was when it was done."""
        key = (name, *fidelity)
        if key in self._paid:
            return
        started = time.monotonic()
        answers = work()
        if key not in self._spent:
            self._spent[key] = self._with_owed(name, time.monotonic() - started, answers)
            seconds, answers = self._spent[key]
            line = {"candidate": name, "look": fidelity, "seconds": seconds, "answers": answers}
            append_lines(self._context.folder / SPENT_FILE, [line])
        self._paid.add(key)
        self._budget.spend(*self._spent[key])

    def _unpaid_answers(self) -> Counter[str]:
        """By candidate, the answers of measurements in the middle of which a search was killed."""
        owed = Counter({name: len(known) for name, known in self._answers.items()})
        for (name, *_), (_, answers) in self._spent.items():
            owed[name] -= answers
        return +owed

    def _with_owed(self, name: str, seconds: float, answers: int) -> tuple[float, int]:
        """Cost of a measurement, with what was done of it before a kill; how long that took is no longer known."""
        owed = self._owed.pop(name, 0)
        took, made = map(sum, zip((seconds, answers), *self._spent.values(), strict=True))
        return seconds + (owed * took / made if made else 0.0), answers + owed

    def _ask(self, candidate: Candidate | None, fidelity: Fidelity) -> int:
        """Asks for what isn't known yet; gives how many answers that were."""
        name = NO_PATCH if candidate is None else candidate.id
        known = self._answers.setdefault(name, {})
        wanted = [*self.jobs[: fidelity.answers], *(self.task_jobs if fidelity.tasks else [])]
        jobs = [job for job in wanted if PairKey(*job.key[1:]) not in known]
        texts = [text for text in self.texts[: fidelity.texts] if not self._is_known(name, text[0], text[1].id)]
        if not (jobs or texts):
            return 0
        patch = self._context.backend.serve(self._arm(candidate))
        named = [replace(job, key=job.key._replace(arm=name)) for job in jobs]
        for answered in self._context.backend.answer(named):
            records = [record_of(job, completion, patch, self._context.table) for job, completion in answered]
            self._kept.add(records)
            known.update((_pair_key(record), record) for record in records)
        for set_name, probe in texts:
            logprobs = self._context.backend.logprobs(probe.prompt, probe.reply or "")
            self._keep(name, set_name, probe.id, logprobs)
        return len(jobs)

    def _arm(self, candidate: Candidate | None) -> Arm:
        if candidate is None:
            return unpatched()
        return Arm(candidate.id, "patch", [candidate.patch(f"candidate-{candidate.id}", self._context.guard).to_data()])

    def _is_known(self, name: str, set_name: str, text: str) -> bool:
        key = (name, set_name, text)
        return key in self._logprobs if name == NO_PATCH else key in self._drifts

    def _keep(self, name: str, set_name: str, text: str, logprobs: TokenLogprobs) -> None:
        """Keeps the unpatched model's log-probabilities, and of all others only how far theirs are from them."""
        if name == NO_PATCH:
            # As they are read again, so that what goes on from files finds the very same drifts.
            self._logprobs[name, set_name, text] = self._kept.add_logprobs((name, set_name, text), logprobs)
            return
        found = drift(text, self._logprobs[NO_PATCH, set_name, text], logprobs)
        self._drifts[name, set_name, text] = found
        line = {"candidate": name, "set": set_name, **asdict(found)}
        append_lines(self._context.folder / DRIFTS_FILE, [line])


def _pair_key(record: Record) -> PairKey:
    return PairKey(*record.key[1:])


def _drift(line: Mapping[str, Any]) -> Drift:
    return Drift(**{name: value for name, value in line.items() if name not in {"candidate", "set"}})


def _two_to_one(first: Sequence[Job], second: Sequence[Job]) -> list[Job]:
    """All of both: two of the first, one of the second, and so on until one is used up."""
    ones, twos = list(first), list(second)
    mixed: list[Job] = []
    while ones or twos:
        mixed += ones[:2] + twos[:1]
        ones, twos = ones[2:], twos[1:]
    return mixed
