# SPDX-License-Identifier: Apache-2.0
"""Where candidates are measured: swapped in, asked, compared with the unpatched model, and every answer kept.

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
from vllm_surgery.evaluation.analysis.summary import Place
from vllm_surgery.evaluation.arms import Arm, unpatched
from vllm_surgery.evaluation.drift import Drift, drift
from vllm_surgery.evaluation.records import Record, append_lines, read_lines
from vllm_surgery.evaluation.trial import Trial, TrialFolder, record_of
from vllm_surgery.localization.search.measurements import Cost, Loops, Measure
from vllm_surgery.localization.settings import GREEDY, SIDE
from vllm_surgery.patch.patch_set import NO_PATCH

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from vllm_surgery.evaluation.backends.base import Backend, Chances, Job
    from vllm_surgery.evaluation.probes import Probe
    from vllm_surgery.localization.candidates import Candidate
    from vllm_surgery.localization.search.budget import Budget
    from vllm_surgery.localization.settings import SearchSettings
    from vllm_surgery.loops import TokenTable

DRIFTS_FILE, SPENT_FILE = "drifts.jsonl", "spent.jsonl"


class Look(NamedTuple):
    """How closely a candidate is looked at.

    Attributes:
        answers: to how many of the jobs for loops.
        texts: on how many sound replies its chances are compared.
        tasks: whether short lists and skills are asked.
    """

    answers: int
    texts: int
    tasks: bool = False


@dataclass(frozen=True)
class Bench:
    """What a lab works with.

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


class Lab:
    """Measures candidates on the search's own probes.

    Args:
        bench: what it works with.
        settings: what is asked.
        budget: is charged for every measurement.
    """

    def __init__(self, bench: Bench, settings: SearchSettings, budget: Budget) -> None:
        self._bench, self._settings, self._budget = bench, settings, budget
        self.trial = Trial.of(settings.search_protocol(), [unpatched()], {})
        self._kept = TrialFolder(bench.folder)
        bench.folder.mkdir(parents=True, exist_ok=True)
        self._answers: dict[str, dict[Place, Record]] = {}
        for record in self._kept.records():
            self._answers.setdefault(record.key.arm, {})[_place(record)] = record
        lines = read_lines(bench.folder / DRIFTS_FILE)
        self._drifts = {(line["candidate"], line["set"], line["text"]): _drift(line) for line in lines}
        self._chances: dict[tuple[str, str, str], Chances] = self._kept.chances()
        self._spent: dict[tuple[Any, ...], tuple[float, int]] = {
            (line["candidate"], *line["look"]): (line["seconds"], line["answers"])
            for line in read_lines(bench.folder / SPENT_FILE)
        }
        self._paid: set[tuple[Any, ...]] = set()
        self._owed = self._unpaid_answers()
        every = self.trial.jobs(self.trial.arms[0])
        self.jobs = [job for job in every if job.key.cell != SIDE]
        self.task_jobs = [job for job in every if job.key.cell == SIDE]
        self.texts = [(name, probe) for name in settings.text for probe in self.trial.sets[name].probes]

    @property
    def everything(self) -> Look:
        """The closest look."""
        return Look(len(self.jobs), len(self.texts), tasks=bool(self.task_jobs))

    def baseline(self) -> list[Record]:
        """The unpatched model's answers, and from now on the jobs in the order in which they tell most.

        Two that loop, then one that doesn't, and so on, the greedy ones first: a short look then sees loops that could
        go away, and answers that could begin to loop.
        """
        look = self.everything
        self._charged(NO_PATCH, look, lambda: self._ask(None, look))
        known = self._answers[NO_PATCH]
        greedy = [job for job in self.jobs if job.key.cell == GREEDY]
        source = random.Random(self._settings.seed)  # noqa: S311 - a draw that anybody may repeat
        source.shuffle(greedy)
        looping = [job for job in greedy if loops(known[Place(*job.key[1:])])]
        sound = [job for job in greedy if job not in looping]
        rest = [job for job in self.jobs if job.key.cell != GREEDY]
        source.shuffle(rest)
        self.jobs = [*_two_to_one(looping, sound), *rest]
        return [known[Place(*job.key[1:])] for job in self.jobs]

    def right(self) -> list[Record]:
        """The unpatched model's right answers to tasks. Needs the baseline."""
        return [
            record
            for probes, jobs in self._task_sets()
            for probe, record in zip(probes, self._of(NO_PATCH, jobs), strict=True)
            if is_right(probe, record, run_code=False)
        ]

    def measure(self, candidate: Candidate, look: Look) -> Measure:
        """What a candidate does, as far as is looked.

        Raises:
            SurgeryError: it can't be swapped in, or somebody couldn't answer.
        """
        self._charged(candidate.id, look, lambda: self._ask(candidate, look))
        self._bench.report(str(candidate))
        jobs = self.jobs[: look.answers]
        drifts = [self._drifts[candidate.id, name, probe.id] for name, probe in self.texts[: look.texts]]
        cost = Cost.of(drifts, self._tasks(candidate) if look.tasks else []) if drifts else None
        return Measure(candidate, Loops.of(self._of(NO_PATCH, jobs), self._of(candidate.id, jobs)), cost)

    def _of(self, name: str, jobs: Sequence[Job]) -> list[Record]:
        return [self._answers[name][Place(*job.key[1:])] for job in jobs]

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

    def _charged(self, name: str, look: Look, work: Callable[[], int]) -> None:
        """Does what is missing, and charges the budget once for it, now or as it was when it was done."""
        key = (name, *look)
        if key in self._paid:
            return
        started = time.monotonic()
        answers = work()
        if key not in self._spent:
            self._spent[key] = self._with_owed(name, time.monotonic() - started, answers)
            seconds, answers = self._spent[key]
            line = {"candidate": name, "look": look, "seconds": seconds, "answers": answers}
            append_lines(self._bench.folder / SPENT_FILE, [line])
        self._paid.add(key)
        self._budget.spend(*self._spent[key])

    def _unpaid_answers(self) -> Counter[str]:
        """By candidate, the answers of measurements in the middle of which a search was killed."""
        owed = Counter({name: len(known) for name, known in self._answers.items()})
        for (name, *_), (_, answers) in self._spent.items():
            owed[name] -= answers
        return +owed

    def _with_owed(self, name: str, seconds: float, answers: int) -> tuple[float, int]:
        """What a measurement took, with what was done of it before a kill; how long that took is no longer known."""
        owed = self._owed.pop(name, 0)
        took, made = map(sum, zip((seconds, answers), *self._spent.values(), strict=True))
        return seconds + (owed * took / made if made else 0.0), answers + owed

    def _ask(self, candidate: Candidate | None, look: Look) -> int:
        """Asks for what isn't known yet; gives how many answers that were."""
        name = NO_PATCH if candidate is None else candidate.id
        known = self._answers.setdefault(name, {})
        wanted = [*self.jobs[: look.answers], *(self.task_jobs if look.tasks else [])]
        jobs = [job for job in wanted if Place(*job.key[1:]) not in known]
        texts = [text for text in self.texts[: look.texts] if not self._is_known(name, text[0], text[1].id)]
        if not (jobs or texts):
            return 0
        patch = self._bench.backend.serve(self._arm(candidate))
        named = [replace(job, key=job.key._replace(arm=name)) for job in jobs]
        for answered in self._bench.backend.answer(named):
            records = [record_of(job, completion, patch, self._bench.table) for job, completion in answered]
            self._kept.add(records)
            known.update((_place(record), record) for record in records)
        for set_name, probe in texts:
            chances = self._bench.backend.chances(probe.prompt, probe.reply or "")
            self._keep(name, set_name, probe.id, chances)
        return len(jobs)

    def _arm(self, candidate: Candidate | None) -> Arm:
        if candidate is None:
            return unpatched()
        return Arm(candidate.id, "patch", [candidate.patch(f"candidate-{candidate.id}", self._bench.guard).to_data()])

    def _is_known(self, name: str, set_name: str, text: str) -> bool:
        key = (name, set_name, text)
        return key in self._chances if name == NO_PATCH else key in self._drifts

    def _keep(self, name: str, set_name: str, text: str, chances: Chances) -> None:
        """Keeps the unpatched model's chances, and of all others only how far theirs are from them."""
        if name == NO_PATCH:
            # As they are read again, so that what goes on from files finds the very same drifts.
            self._chances[name, set_name, text] = self._kept.add_chances((name, set_name, text), chances)
            return
        found = drift(text, self._chances[NO_PATCH, set_name, text], chances)
        self._drifts[name, set_name, text] = found
        line = {"candidate": name, "set": set_name, **asdict(found)}
        append_lines(self._bench.folder / DRIFTS_FILE, [line])


def _place(record: Record) -> Place:
    return Place(*record.key[1:])


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
