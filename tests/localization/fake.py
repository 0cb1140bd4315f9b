# SPDX-License-Identifier: Apache-2.0
"""A model made of rules: which answers loop depends on what is edited, and on the probe. No engine, no arithmetic."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from tests.evaluation.fake_server import LOOP, SOUND, WORDS
from vllm_surgery.errors import CannotSwapError, EngineError, MismatchError, SurgeryError
from vllm_surgery.evaluation.backends.base import Completion, EngineFacts, Held, TokenLogprobs
from vllm_surgery.localization import pipeline as localize
from vllm_surgery.localization.attribution import Attribution
from vllm_surgery.localization.candidates import Candidate, Target
from vllm_surgery.localization.search.budget import Budget
from vllm_surgery.localization.search.evaluator import CandidateEvaluator, EvalContext
from vllm_surgery.localization.search.measurements import Cost, LoopChange, Measurement
from vllm_surgery.localization.search.search import Search, SearchResult
from vllm_surgery.localization.search.stages import Stages
from vllm_surgery.localization.settings import SearchSettings
from vllm_surgery.loops import KINDS, TokenTable
from vllm_surgery.patch.format import Patch
from vllm_surgery.patch.patch_set import NO_PATCH
from vllm_surgery.patch.units import MASK, Unit

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import pytest

    from vllm_surgery.evaluation.arms import Arm
    from vllm_surgery.evaluation.backends.base import Job, Text
    from vllm_surgery.model.checkpoint import ModelFolder
    from vllm_surgery.patch.units import Gain

LAYERS, WIDTH = 3, 8
BATCH = 8
PROBES = 12
"""Of each half. Two of three loop."""

COMMA = WORDS
TABLE = TokenTable([*(f" w{number}" for number in range(WORDS)), ","])
_STUCK = random.Random(1).choices(range(60, 63), k=60)
COLLAPSED = [token for entry in [*range(50, 58), *_STUCK] for token in (entry, COMMA)]
BRED = "List 2 things"

PROBE_FILE, CHOICE_FILE = "lists.yaml", "choice.yaml"


@dataclass
class FakeModel:
    """Answers by rule.

    Attributes:
        folder: what it says that it was loaded from.
        context: tokens that it has room for.
        causes: units of which each alone is enough for loops, as long as it is louder than half; without any, loops
            have no cause that could be edited.
        helpers: units that cure the probes of one number modulo 3 alone.
        loops: whether anything can loop at all.
        unseen: whether loops are in the texts alone, where the detectors, which read tokens, are blind.
        dear: units that move probabilities far when they are edited.
        harmful: units without which tasks go wrong.
        deadly: units without which there are no answers.
        breeders: units without which one list of each half, a sound one, collapses onto few entries.
        learnt_by_heart: whether cures work on the search half alone.
        unwelcome: units for which a swap is refused, and a slot too.
        weights_only: units that slots can't hold.
        room: slots that it has.
        asked: of each answer that was asked for: the arm, the cell, the prompt and the seed.
        compared: of each text: the edits and the prompt.
        stop_after: answers after which it dies.
    """

    folder: str = "fake"
    context: int = 4096
    causes: frozenset[Unit] = frozenset()
    helpers: dict[Unit, int] = field(default_factory=dict)
    loops: bool = True
    unseen: bool = False
    dear: frozenset[Unit] = frozenset()
    harmful: frozenset[Unit] = frozenset()
    deadly: frozenset[Unit] = frozenset()
    breeders: frozenset[Unit] = frozenset()
    learnt_by_heart: bool = False
    unwelcome: frozenset[Unit] = frozenset()
    weights_only: frozenset[Unit] = frozenset()
    room: int = 0
    asked: list[tuple[str, str, str, int]] = field(default_factory=list)
    compared: list[tuple[str, str]] = field(default_factory=list)
    swaps: list[str] = field(default_factory=list)
    stop_after: int | None = None
    gains: dict[Unit, Gain] = field(default_factory=dict)
    held: dict[str, dict[Unit, Gain]] = field(default_factory=dict)
    batches: list[list[str]] = field(default_factory=list)

    def facts(self) -> EngineFacts:
        return EngineFacts("fake", self.folder, self.context, "fake 0")

    def serve(self, arm: Arm) -> str | None:
        self.gains, self.held = self._gains_of(arm), {}
        self.swaps.append(arm.name)
        return arm.id or (arm.name if self.gains else NO_PATCH)

    def hold(self, arms: Sequence[Arm]) -> Held:
        assert len(arms) <= self.room
        held = Held()
        self.held, self.gains = {}, {}
        for arm in arms:
            try:
                gains = self._gains_of(arm)
                if self.weights_only & gains.keys():
                    raise CannotSwapError("no rank has a place for the gains")
            except SurgeryError as error:
                held.refused[arm.name] = error
            else:
                self.held[arm.name] = gains
                held.ids[arm.name] = arm.id or arm.name
        self.batches.append(list(held.ids))
        return held

    def _gains_of(self, arm: Arm) -> dict[Unit, Gain]:
        edits = [item for patch in arm.patches for item in Patch.from_data(patch).assignments()]
        gains = {Unit(item.kind, item.layer, index): item.gain for item in edits for index in item.resolve(WIDTH)}
        if self.unwelcome & gains.keys() and len(gains) < WIDTH:
            raise MismatchError("patch", "edits[0]", "its format can't hold the edit")
        return gains

    def answer(self, jobs: Sequence[Job]) -> Iterator[list[tuple[Job, Completion]]]:
        for start in range(0, len(jobs), BATCH):
            batch = jobs[start : start + BATCH]
            if self.stop_after is not None and len(self.asked) + len(batch) > self.stop_after:
                raise EngineError("killed")
            self.asked += [(job.key.arm, job.key.cell, job.prompt, job.key.seed) for job in batch]
            yield [(job, self._under(job.key.arm)._answer(job)) for job in batch]

    def _under(self, arm: str) -> FakeModel:
        """The model as an arm that is held has it."""
        return replace(self, gains=self.held[arm]) if self.held else self

    def logprobs(self, texts: Sequence[Text]) -> Iterator[tuple[Text, TokenLogprobs]]:
        for text in texts:
            yield text, self._under(text.arm)._logprobs(text.prompt)

    def _logprobs(self, prompt: str) -> TokenLogprobs:
        self.compared.append((repr(sorted(self.gains.items())), prompt))
        targets = [10, 11, 12, 13]
        # Digits that files don't keep: what goes on from files must see the very same log-probabilities.
        logprob = -0.512345678 - 0.003 * min(len(self.gains), WIDTH) + (0.4 if self._quiet(self.dear) else 0.0)
        return TokenLogprobs(targets, [logprob] * 4, [{target: logprob, 999: -2.123456789} for target in targets])

    def tokens_before(self, prompt: str) -> list[int]:
        return [1, 2, 3]

    def encode(self, text: str) -> list[int]:
        return list(range(len(text)))

    def _answer(self, job: Job) -> Completion:
        tokens = LOOP if self._loops(job) else SOUND
        if job.prompt == BRED and self._quiet(self.breeders):
            tokens = COLLAPSED
        if self._quiet(self.deadly) or (not job.prompt.startswith("List") and self._quiet(self.harmful)):
            tokens = []
        if tokens is LOOP and self.unseen:
            return Completion(TABLE.text(LOOP), SOUND, "length")
        return Completion(TABLE.text(tokens), tokens, "stop" if tokens is SOUND else "length")

    def _loops(self, job: Job) -> bool:
        if not (self.loops and job.prompt.startswith("List")):
            return False
        number = int(job.prompt.split()[1])
        if number % 3 == 2:
            return False
        if self.learnt_by_heart and job.key.set.endswith(":held-out"):
            return True
        if any(rest == number % 3 and self._quiet({unit}) for unit, rest in self.helpers.items()):
            return False
        return not self.causes or not all(map(self._is_quiet, self.causes))

    def _quiet(self, units: frozenset[Unit] | set[Unit]) -> bool:
        return any(map(self._is_quiet, units))

    def _is_quiet(self, unit: Unit) -> bool:
        gain = self.gains.get(unit, 1.0)
        return gain == MASK or gain <= 0.5


def neuron(layer: int, index: int) -> Unit:
    return Unit("neurons", layer, index)


def candidate(*units: Target, gain: Gain = 0.0, origin: str = "test") -> Candidate:
    return Candidate.of(dict.fromkeys(units, gain), origin)


def every_single(*more: Unit, gain: Gain = 0.0) -> Attribution:
    """An attribution that is no good: these units first, then all in their order."""
    units = [neuron(layer, index) for layer in range(LAYERS) for index in range(WIDTH)]
    return Attribution([candidate(unit, gain=gain) for unit in dict.fromkeys([*more, *units])])


def probe_files(folder: Path) -> dict[str, Any]:
    """Small probe sets, as the settings of a search name them."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = range(2 * PROBES)
    halves = [
        f"{{id: p{one}, prompt: List {one // 2} things, half: {('search', 'held-out')[one % 2]}}}" for one in numbers
    ]
    _write(folder / PROBE_FILE, "lists", "loops", halves)
    chosen_by = [f"{{id: c{one}, prompt: List {one} things, half: choice}}" for one in range(PROBES)]
    _write(folder / CHOICE_FILE, "choice", "loops", chosen_by)
    skills = [f"{{id: s{one}, prompt: Skill {one}, check: {{kind: says, any: [w50]}}}}" for one in range(4)]
    _write(folder / "skills.yaml", "skills", "skills", skills)
    texts = [f"{{id: t{one}, prompt: Text {one}, reply: Sound.}}" for one in range(2)]
    _write(folder / "texts.yaml", "texts", "text", texts)
    return {
        "search": [f"{folder / PROBE_FILE}:search"],
        "choice": [],
        "held_out": [f"{folder / PROBE_FILE}:held-out"],
        "ordinary": [],
        "text": [str(folder / "texts.yaml")],
        "tasks": [str(folder / "skills.yaml")],
        "held_out_text": [str(folder / "texts.yaml")],
        "held_out_tasks": [str(folder / "skills.yaml")],
    }


def _write(file: Path, name: str, use: str, probes: Sequence[str]) -> None:
    file.write_text(f"name: {name}\nuse: {use}\nprobes:\n" + "".join(f"  - {probe}\n" for probe in probes))


def settings_in(folder: Path, **changes: Any) -> SearchSettings:
    return SearchSettings(**{**probe_files(folder / "probes"), "seeds": 1, "held_out_seeds": 1, **changes})


def lab_in(
    folder: Path, model: FakeModel, settings: SearchSettings, budget: Budget | None = None
) -> CandidateEvaluator:
    context = EvalContext(model, TABLE, folder, {}, lambda *_: None)
    return CandidateEvaluator(context, settings, budget if budget is not None else Budget())


def search_in(
    folder: Path,
    model: FakeModel,
    anatomy: ModelFolder,
    attribution: Attribution,
    budget: Budget | None = None,
    **changes: Any,
) -> SearchResult:
    """A whole search with an attribution that is given."""
    settings, budget = settings_in(folder, **changes), budget if budget is not None else Budget()
    evaluator = lab_in(folder / "search", model, settings, budget)
    return Search(evaluator, anatomy.anatomy, settings, Stages(budget), lambda *_: attribution).run()


def stand_in(monkeypatch: pytest.MonkeyPatch, model: FakeModel, attribution: Attribution) -> SimpleNamespace:
    """Puts a model made of rules where `localize` has an engine; gives what stands for the `vllm.LLM`."""
    monkeypatch.setattr(localize, "require_swaps", lambda _: None)
    monkeypatch.setattr(localize, "OfflineBackend", lambda *_: model)
    monkeypatch.setattr(localize, "Ranker", lambda *_: SimpleNamespace(rank=lambda *_: attribution))
    monkeypatch.setattr(localize.TokenTable, "from_tokenizer", lambda _: TABLE)
    return SimpleNamespace(get_tokenizer=lambda: None)


def measure_of(
    one: Candidate, looped: int, kl: float | None = 0.01, *, base: int = 10, answers: int = 20, **changes: Any
) -> Measurement:
    """A look at a candidate, as if there had been one."""
    kinds = {kind: (base, looped) if kind == "verbatim" else (0, 0) for kind in KINDS}
    loops = {"rescued": max(0, base - looped), "newly": max(0, looped - base), "kinds": kinds, "entries": 1.0}
    loops |= {"repeats": (base, looped), "late": 1.0}
    cost = {"perplexity": 1.0, **{name: changes.pop(name) for name in list(changes) if name in Cost.__annotations__}}
    found = LoopChange(answers=answers, base=base, looped=looped, **{**loops, **changes})
    return Measurement(one, found, None if kl is None else Cost(kl=kl, **cost))
