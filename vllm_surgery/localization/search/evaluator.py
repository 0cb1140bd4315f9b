# SPDX-License-Identifier: Apache-2.0
"""Evaluation of candidates: held in slots or swapped in, asked, compared with the unpatched model, every answer kept.

Nothing is asked twice: a search that was killed walks the same way again through what is known and goes on from there.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

from vllm_surgery.errors import CannotSwapError, PatchError
from vllm_surgery.evaluation.analysis.side_effects import Tasks, is_right, tasks
from vllm_surgery.evaluation.analysis.summary import PairKey
from vllm_surgery.evaluation.arms import Arm, unpatched
from vllm_surgery.evaluation.backends.base import Text
from vllm_surgery.evaluation.drift import Drift, drift
from vllm_surgery.evaluation.records import Record, append_lines, read_lines
from vllm_surgery.evaluation.trial import Trial, TrialFolder, record_of
from vllm_surgery.localization.search.budget import Asked
from vllm_surgery.localization.search.measurements import Cost, LoopChange, Measurement, loops_by_either
from vllm_surgery.localization.search.spending import Manner, Spending
from vllm_surgery.localization.settings import GREEDY, SIDE
from vllm_surgery.patch.patch_set import NO_PATCH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from vllm_surgery.evaluation.backends.base import Backend, Job, TokenLogprobs
    from vllm_surgery.evaluation.probes import Probe
    from vllm_surgery.evaluation.records import Way
    from vllm_surgery.localization.candidates import Candidate
    from vllm_surgery.localization.search.budget import Budget
    from vllm_surgery.localization.settings import SearchSettings
    from vllm_surgery.loops import TokenTable

Refusal: TypeAlias = PatchError | CannotSwapError
"""Why the model can't take a candidate."""

DRIFTS_FILE = "drifts.jsonl"


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


class Report(Protocol):
    """Is told how a search goes on."""

    def __call__(self, what: str, done: float = 0.0) -> None:
        """What is being done, and how much of the search's part was done since the last call."""


@dataclass(frozen=True)
class EvalContext:
    """The surroundings of an evaluation: a backend, and a folder for the answers.

    Attributes:
        backend: who answers.
        table: what the model's tokens are as text.
        folder: where everything is kept.
        guard: of the candidates' patches.
        report: is told of each measurement, and of each batch of answers.
    """

    backend: Backend
    table: TokenTable
    folder: Path
    guard: Mapping[str, Any]
    report: Report


class CandidateEvaluator:
    """Measures candidates on the search's own probes.

    Args:
        context: who answers, and where that is kept.
        settings: what is asked.
        budget: is charged for every measurement.

    Attributes:
        jobs: of a measurement in full, those for loops.
        task_jobs: the others.
        texts: reference replies, by their set.
        spending: what every measurement cost.
        left_out: sampled answers that the baseline had no budget for.
    """

    def __init__(self, context: EvalContext, settings: SearchSettings, budget: Budget) -> None:
        self._context, self._settings, self._budget = context, settings, budget
        self.trial = Trial.of(settings.search_protocol(), [unpatched()], {})
        self._kept = TrialFolder(context.folder)
        context.folder.mkdir(parents=True, exist_ok=True)
        self._answers: dict[str, dict[PairKey, Record]] = defaultdict(dict)
        for record in self._kept.records():
            self._answers[record.key.arm][_pair_key(record)] = record
        lines = read_lines(context.folder / DRIFTS_FILE)
        self._drifts = {(line["candidate"], line["set"], line["text"]): _drift(line) for line in lines}
        self._logprobs: dict[tuple[str, str, str], TokenLogprobs] = self._kept.logprobs()
        self.spending = Spending(
            context.folder, budget, {name: _asked(known.values()) for name, known in self._answers.items()}
        )
        every = self.trial.jobs(self.trial.arms[0])
        self.jobs = [job for job in every if job.key.cell != SIDE]
        self.left_out = 0
        self.task_jobs = [job for job in every if job.key.cell == SIDE]
        self.texts = [(name, probe) for name in settings.text for probe in self.trial.sets[name].probes]

    @property
    def full_fidelity(self) -> Fidelity:
        """Every job for loops, every reference reply and all tasks."""
        return Fidelity(len(self.jobs), len(self.texts), tasks=bool(self.task_jobs))

    @property
    def room(self) -> int:
        """Candidates that can be measured side by side."""
        return max(1, self._context.backend.room)

    def baseline(self, most: float = math.inf) -> list[Record]:
        """The unpatched model's answers, and from now on the jobs in the order in which they tell most.

        Two that loop, then one that doesn't, and so on, the greedy ones first: a measurement of low fidelity then sees
        loops that could go away, and answers that could begin to loop.

        Args:
            most: the share of the budget after which no further seed of sampled answers is asked for. Those that are
                left out are no job of any candidate.
        """
        every, greedy = self.jobs, [job for job in self.jobs if job.key.cell == GREEDY]
        seeds = sorted({job.key.seed for job in every if job.key.cell != GREEDY})
        self.jobs = greedy
        self._measure_unpatched(len(every))
        for seed in seeds:
            if self._budget.used >= most:
                break
            self.jobs = [*self.jobs, *(job for job in every if job.key.cell != GREEDY and job.key.seed == seed)]
            self._measure_unpatched(len(every))
        self.left_out = len(every) - len(self.jobs)
        return self._in_telling_order(greedy)

    def _measure_unpatched(self, every: int) -> None:
        fidelity = self.full_fidelity
        if not self.spending.knows(NO_PATCH, fidelity):
            started, told = time.monotonic(), self._told("baseline", every + len(self.task_jobs))
            wanted, asked = self._wanted({NO_PATCH: None}, fidelity), {NO_PATCH: Asked()}
            if any(wanted):
                patch = self._context.backend.serve(unpatched())
                asked = self._ask({NO_PATCH: patch}, wanted, None, told)
            self.spending.write(asked, fidelity, time.monotonic() - started, Manner())
        self._budget.task_weight = self._task_weight()
        self.spending.pay(NO_PATCH, fidelity)

    def _task_weight(self) -> float:
        """Of the unpatched model's greedy answers, how long one to a task is beside one to a probe for loops."""
        greedy = [job for job in self.jobs if job.key.cell == GREEDY]
        tasks, lists = ([len(one.token_ids) for one in self._of(NO_PATCH, jobs)] for jobs in (self.task_jobs, greedy))
        return fmean(tasks) / fmean(lists) if tasks and any(lists) else 1.0

    def _in_telling_order(self, greedy: list[Job]) -> list[Record]:
        known = self._answers[NO_PATCH]
        greedy = [*greedy]
        source = random.Random(self._settings.seed)  # noqa: S311 - a draw that anybody may repeat
        source.shuffle(greedy)
        looping = [job for job in greedy if loops_by_either(known[PairKey(*job.key[1:])])]
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
        (found,) = self.measure_all([candidate], fidelity)
        if isinstance(found, (PatchError, CannotSwapError)):
            raise found
        return found

    def measure_all(self, candidates: Sequence[Candidate], fidelity: Fidelity) -> list[Measurement | Refusal]:
        """The same for several candidates side by side, `room` at most and each once; for each that, or its refusal.

        Raises:
            SurgeryError: somebody couldn't answer.
        """
        new = [one for one in candidates if not self.spending.knows(one.id, fidelity)]
        refused = self._measure_new(new, fidelity, [one.id for one in candidates]) if new else {}
        for one in candidates:
            if one.id not in refused:
                self.spending.pay(one.id, fidelity)
        return [refused.get(one.id) or self._measurement(one, fidelity) for one in candidates]

    def answers_missing(self, candidate: Candidate, fidelity: Fidelity) -> Asked:
        """The answers that a measurement will be charged with."""
        if self.spending.knows(candidate.id, fidelity):
            return self.spending.unpaid(candidate.id, fidelity)
        jobs, _ = self._wanted({candidate.id: None}, fidelity)
        return _asked(jobs).plus(self.spending.owed(candidate.id))

    def _measurement(self, candidate: Candidate, fidelity: Fidelity) -> Measurement:
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

    def _measure_new(
        self, candidates: Sequence[Candidate], fidelity: Fidelity, group: Sequence[str]
    ) -> dict[str, Refusal]:
        """Asks what isn't known yet: in slots side by side, and else one after another. Gives what is refused."""
        reasons: dict[str, str] = {}
        if self._context.backend.room:
            reasons = self._in_slots(candidates, fidelity, Manner("slot", None, group))
            candidates = [one for one in candidates if one.id in reasons]
        refused: dict[str, Refusal] = {}
        for one in candidates:
            try:
                self._swapped_in(one, fidelity, Manner("swap", reasons.get(one.id), group))
            except (PatchError, CannotSwapError) as error:
                refused[one.id] = error
        return refused

    def _in_slots(self, candidates: Sequence[Candidate], fidelity: Fidelity, manner: Manner) -> dict[str, str]:
        """Measures those that slots can hold. Gives the reasons of the others."""
        started = time.monotonic()
        held = self._context.backend.hold([self._arm(one) for one in candidates])
        wanted = self._wanted(held.ids, fidelity)
        told = self._told(f"{len(held.ids)} candidates", len(wanted[0]))
        asked = self._ask(held.ids, wanted, manner.way, told)
        seconds = time.monotonic() - started
        self.spending.write(asked, fidelity, seconds, manner)
        return {name: str(reason) for name, reason in held.refused.items()}

    def _swapped_in(self, candidate: Candidate, fidelity: Fidelity, manner: Manner) -> None:
        started = time.monotonic()
        wanted = self._wanted({candidate.id: None}, fidelity)
        asked = {candidate.id: Asked()}
        if any(wanted):
            patch = self._context.backend.serve(self._arm(candidate))
            asked = self._ask({candidate.id: patch}, wanted, manner.way, self._told(str(candidate), len(wanted[0])))
        seconds = time.monotonic() - started
        self.spending.write(asked, fidelity, seconds, manner)

    def _told(self, what: str, answers: int) -> Callable[[Asked], None]:
        """Tells of answers as they come, of so many in all."""
        started, came = time.monotonic(), Asked()

        def tell(more: Asked) -> None:
            nonlocal came
            came = came.plus(more)
            self._budget.note(time.monotonic() - started, came)
            done = more.answers / answers if answers else 0.0
            self._context.report(f"{what}, {came.answers} of {answers} answers", done)

        return tell

    def _wanted(self, names: Mapping[str, object], fidelity: Fidelity) -> tuple[list[Job], list[Text]]:
        """The answers and texts that aren't known yet of candidates, those to one prompt side by side."""
        jobs = [*self.jobs[: fidelity.answers], *(self.task_jobs if fidelity.tasks else [])]
        return [
            replace(job, key=job.key._replace(arm=name))
            for job in jobs
            for name in names
            if PairKey(*job.key[1:]) not in self._answers[name]
        ], [
            Text(name, set_name, probe.id, probe.asked(self._settings.form), probe.reply or "")
            for set_name, probe in self.texts[: fidelity.texts]
            for name in names
            if not self._is_known(name, set_name, probe.id)
        ]

    def _ask(
        self,
        patches: Mapping[str, str | None],
        wanted: tuple[Sequence[Job], Sequence[Text]],
        way: Way | None,
        told: Callable[[Asked], None],
    ) -> dict[str, Asked]:
        """Asks under patches that are served; gives the answers that each of them gave."""
        asked, (jobs, texts) = dict.fromkeys(patches, Asked()), wanted
        for answered in self._context.backend.answer(jobs):
            records = [
                record_of(job, completion, patches[job.key.arm], self._context.table, way)
                for job, completion in answered
            ]
            self._kept.add(records)
            for record in records:
                self._answers[record.key.arm][_pair_key(record)] = record
                asked[record.key.arm] = asked[record.key.arm].plus(_asked([record]))
            told(_asked(records))
        for text, logprobs in self._context.backend.logprobs(texts):
            self._keep(*text.key, logprobs)
        return asked

    def _arm(self, candidate: Candidate) -> Arm:
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


def _asked(answers: Iterable[Job | Record]) -> Asked:
    """How many there are of each kind."""
    tasks = Counter(one.key.cell == SIDE for one in answers)
    return Asked(tasks[False], tasks[True])


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
