# SPDX-License-Identifier: Apache-2.0
"""A trial: every arm asked every probe under every seed, each answer kept as it comes. `summary` judges it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import tqdm

from vllm_surgery.atomic_files import atomic_write
from vllm_surgery.errors import UsageError
from vllm_surgery.evaluation.arms import Arm, checked, in_batches
from vllm_surgery.evaluation.backends.base import Job, Text, TokenLogprobs
from vllm_surgery.evaluation.drift import Drift
from vllm_surgery.evaluation.probes import ProbeSet, load_probes
from vllm_surgery.evaluation.protocol import Protocol
from vllm_surgery.evaluation.records import FoundLoop, Key, Record, append_lines, read_lines, read_state
from vllm_surgery.loops import TokenTable, detect, ending_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vllm_surgery.evaluation.backends.base import Backend, Completion
    from vllm_surgery.evaluation.records import Way

TRIAL_FILE, ANSWERS_FILE, LOGPROBS_FILE, EXACT_FILE = "trial.json", "answers.jsonl", "logprobs.jsonl", "exact.json"
FORMAT = 1
_PASSING = {"started", "command"}


@dataclass(frozen=True)
class Trial:
    """The questions and the arms; with the answers' file all that a report needs.

    Attributes:
        sets: the probe sets, by the names that the protocol has for them.
        arms: the unpatched one first.
        about: what else a reader needs to run it again: the model, versions, the seed of the shams.
    """

    protocol: Protocol
    sets: dict[str, ProbeSet]
    arms: list[Arm]
    about: dict[str, Any]

    @classmethod
    def of(cls, protocol: Protocol, arms: Sequence[Arm], about: Mapping[str, Any]) -> Trial:
        """A trial with the sets that its protocol names.

        Raises:
            UsageError: a set is missing or wrong, one is used where it doesn't belong, or two arms have one name.
        """
        sets = {name: load_probes(name) for name in protocol.sets}
        for name in protocol.text:
            if sets[name].use != "text":
                raise UsageError(f"{name}: the protocol's `text` asks for a set with `use: text`")
        for cell in protocol.cells:
            wrong = [name for name in cell.sets if sets[name].use == "text"]
            if wrong:
                raise UsageError(f"{wrong[0]}: reference replies can't be asked for; name it under `text`")
        return cls(protocol, sets, checked(arms), dict(about))

    def jobs(self, arm: Arm) -> list[Job]:
        """Every answer that an arm has to give."""
        return [
            Job(
                Key(arm.name, cell.name, name, probe.id, seed),
                probe.asked(self.protocol.form),
                cell.sampling(seed) | self._end(name) | arm.sampling,
            )
            for cell in self.protocol.cells
            for name in cell.sets
            for probe in cell.chosen(self.sets[name].probes)
            for seed in range(cell.seeds)
        ]

    def _end(self, name: str) -> dict[str, Any]:
        """What ends the answers to a set, besides the model: of a task that a text goes on with, its line."""
        ends = self.protocol.form == "completion" and self.sets[name].use in {"short", "skills"}
        return {"stop": ["\n"]} if ends else {}

    @property
    def longest(self) -> int:
        """Tokens of the longest answer."""
        return max(cell.max_tokens for cell in self.protocol.cells)

    def to_data(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "format": FORMAT,
            "protocol": self.protocol.model_dump(exclude_none=True),
            "sets": {name: one.model_dump(exclude_defaults=True) for name, one in self.sets.items()},
            "arms": [arm.to_data() for arm in self.arms],
            "about": self.about,
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Trial:
        """The trial whose `to_data` this is."""
        return cls(
            Protocol.model_validate(data["protocol"]),
            {name: ProbeSet.model_validate(one) for name, one in data["sets"].items()},
            [Arm.from_data(arm) for arm in data["arms"]],
            data["about"],
        )


@dataclass(frozen=True)
class TrialFolder:
    """The files of a trial."""

    path: Path

    def open(self, trial: Trial) -> None:
        """Makes the folder, or goes on with what is in it.

        Raises:
            UsageError: it holds another trial, or can't be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if (self.path / TRIAL_FILE).exists():
                return self._compare(self.trial(), trial)
            atomic_write(self.path / TRIAL_FILE, json.dumps(trial.to_data(), indent=1, ensure_ascii=False) + "\n")
        except OSError as error:
            raise UsageError(f"{self.path}: {error.strerror or error}") from None

    def trial(self) -> Trial:
        """The questions and the arms.

        Raises:
            UsageError: there is no trial in this folder.
        """
        file = self.path / TRIAL_FILE
        if (data := read_state(file)) is None:
            raise UsageError(f"{self.path}: holds no trial")
        try:
            return Trial.from_data(data)
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{file}: not a file of a trial: {error}") from None

    def records(self) -> list[Record]:
        """All answers so far."""
        return [Record.from_data(line) for line in read_lines(self.path / ANSWERS_FILE)]

    def add(self, records: Sequence[Record]) -> None:
        """Keeps answers."""
        append_lines(self.path / ANSWERS_FILE, (record.to_data() for record in records))

    def logprobs(self) -> dict[tuple[str, str, str], TokenLogprobs]:
        """The log-probabilities so far, by arm, set and probe."""
        return {
            (line["arm"], line["set"], line["probe"]): TokenLogprobs(
                line["targets"], line["logprobs"], [{int(key): value for key, value in top} for top in line["tops"]]
            )
            for line in read_lines(self.path / LOGPROBS_FILE)
        }

    def add_logprobs(self, key: tuple[str, str, str], logprobs: TokenLogprobs) -> TokenLogprobs:
        """Keeps the log-probabilities of one text; gives them as `logprobs` will, with as many digits as are kept."""
        tops = [{token: round(logprob, 6) for token, logprob in top.items()} for top in logprobs.tops]
        plain = {**asdict(logprobs), "tops": [list(map(list, top.items())) for top in tops]}
        append_lines(self.path / LOGPROBS_FILE, [dict(zip(("arm", "set", "probe"), key, strict=True)) | plain])
        return replace(logprobs, tops=tops)

    def keep_exact(self, drifts: Mapping[str, Sequence[Drift]]) -> None:
        """Keeps the drift over whole distributions of each arm.

        Raises:
            UsageError: it can't be written.
        """
        plain = {name: [asdict(drift) for drift in found] for name, found in drifts.items()}
        try:
            atomic_write(self.path / EXACT_FILE, json.dumps(plain, indent=1) + "\n")
        except OSError as error:
            raise UsageError(f"{self.path}: {error.strerror or error}") from None

    def exact(self) -> dict[str, list[Drift]]:
        """Drift over whole distributions, by arm; only of arms for which there is any.

        Raises:
            UsageError: the file isn't one of a trial.
        """
        file = self.path / EXACT_FILE
        try:
            plain = read_state(file) or {}
            return {name: [Drift(**drift) for drift in found] for name, found in plain.items() if found}
        except (ValueError, TypeError, AttributeError) as error:
            raise UsageError(f"{file}: not a file of a trial: {error}") from None

    def _compare(self, there: Trial, wanted: Trial) -> None:
        for part in ("protocol", "sets", "arms", "about"):
            if _lasting(there.to_data()[part]) != _lasting(wanted.to_data()[part]):
                raise UsageError(f"{self.path}: holds a trial with other {part}: take another folder")


def run_trial(  # noqa: PLR0913 - two have defaults
    trial: Trial,
    backend: Backend,
    folder: TrialFolder,
    table: TokenTable,
    others: Mapping[str, TokenTable] | None = None,
    *,
    quiet: bool = False,
) -> None:
    """Asks for every answer that the folder doesn't hold yet. Takes as long as it takes; progress goes to stderr.

    Args:
        trial: what is asked.
        backend: who answers.
        folder: where answers are kept; a trial that was killed goes on from there.
        table: what the model's tokens are as text, for the detectors.
        others: the same of each arm that is another server, by its name: its model may have other tokens.
        quiet: no progress.

    Raises:
        UsageError: an arm that is another server has no table.
        SurgeryError: somebody couldn't answer. What came until then is kept.
    """
    tables = {arm.name: table for arm in trial.arms if arm.url is None} | dict(others or {})
    if untold := [arm.name for arm in trial.arms if arm.name not in tables]:
        raise UsageError(f"{untold[0]}: another server, and nobody says what its model's tokens are as text")
    folder.open(trial)
    known = {record.key for record in folder.records()}
    total = sum(len(trial.jobs(arm)) for arm in trial.arms)
    with tqdm(total=total, initial=len(known), unit="answer", desc="trial", disable=quiet) as progress:
        asking = _Asking(trial, backend, folder, tables, known, set(folder.logprobs()), progress, quiet)
        for arms in in_batches(trial.arms, backend.room):
            asking.ask(arms)


@dataclass(frozen=True)
class _Asking:
    """One run of a trial, and what was there before it."""

    trial: Trial
    backend: Backend
    folder: TrialFolder
    tables: Mapping[str, TokenTable]
    known: set[Key]
    measured: set[tuple[str, str, str]]
    progress: Any
    quiet: bool

    def ask(self, arms: Sequence[Arm]) -> None:
        """What is missing of these arms: in one batch, as far as slots hold them, and else one after another."""
        left = [arm for arm in arms if self._jobs(arm) or self._texts(arm)]
        if left and self.backend.room and all(arm.url is None for arm in left):
            held = self.backend.hold(left)
            self._answer([arm for arm in left if arm.name in held.ids], held.ids, "slot")
            for name, reason in held.refused.items():
                self._say(f"{name}: can't be held in a slot, so it is swapped in: {reason}")
            left = [arm for arm in left if arm.name in held.refused]
        for arm in left:
            way: Way | None = None if arm.url is not None else "swap"
            self._answer([arm], {arm.name: self.backend.serve(arm)}, way)

    def _answer(self, arms: Sequence[Arm], ids: Mapping[str, str | None], way: Way | None) -> None:
        self.progress.set_description(arms[0].name if len(arms) == 1 else f"{len(arms)} arms")
        for answered in self.backend.answer(paired([self._jobs(arm) for arm in arms])):
            records = [record_of(job, said, ids[job.key.arm], self.tables[job.key.arm], way) for job, said in answered]
            self.folder.add(records)
            self.progress.update(len(records))
        for text, logprobs in self.backend.logprobs(paired([self._texts(arm) for arm in arms])):
            self.folder.add_logprobs(text.key, logprobs)

    def _jobs(self, arm: Arm) -> list[Job]:
        return [job for job in self.trial.jobs(arm) if job.key not in self.known]

    def _texts(self, arm: Arm) -> list[Text]:
        texts = [
            Text(arm.name, name, probe.id, probe.asked(self.trial.protocol.form), probe.reply or "")
            for name in self.trial.protocol.text
            for probe in self.trial.sets[name].probes
        ]
        return [text for text in texts if is_measured(arm) and text.key not in self.measured]

    def _say(self, line: str) -> None:
        if not self.quiet:
            tqdm.write(f"vllm-surgery: {line}", file=sys.stderr)


Asked = TypeVar("Asked")


def paired(lists: Sequence[Sequence[Asked]]) -> list[Asked]:
    """The first of every list, then the second, and so on: arms' answers to one probe are made side by side."""
    longest = max(map(len, lists), default=0)
    return [one[place] for place in range(longest) for one in lists if place < len(one)]


def is_measured(arm: Arm) -> bool:
    """True if an arm's log-probabilities are compared: not where only the sampling differs."""
    return arm.kind not in ("penalty", "rescue")


def record_of(job: Job, completion: Completion, patch: str | None, table: TokenTable, way: Way | None = None) -> Record:
    """The record of an answer that was given under a patch set."""
    tokens = completion.token_ids
    loops = detect(tokens, table, ending=ending_of(completion.finish))
    offsets = _offsets(tokens, table) if loops else []
    found = [FoundLoop.of(loop, offsets) for loop in loops]
    return Record(job.key, patch, job.prompt, job.sampling, completion.text, tokens, completion.finish, found, way)


def _offsets(tokens: Sequence[int], table: TokenTable) -> list[int]:
    """The character at which each token begins, and the end. Characters cut between tokens shift it a little."""
    offsets = [0]
    for token in tokens:
        offsets.append(offsets[-1] + len(table.text([token])))
    return offsets


def _lasting(data: Any) -> Any:
    """The data that must be the same when a trial goes on: as JSON has it, without its start and its command."""
    plain = json.loads(json.dumps(data))
    return {key: value for key, value in plain.items() if key not in _PASSING} if isinstance(plain, dict) else plain
