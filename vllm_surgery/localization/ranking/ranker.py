# SPDX-License-Identifier: Apache-2.0
"""Units ranked: by what the engine's workers see of them, and by gradients where transformers has the model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm_surgery.errors import SurgeryError
from vllm_surgery.evaluation.analysis.outcomes import loops
from vllm_surgery.evaluation.backends.offline import OfflineBackend
from vllm_surgery.localization.attribution import Attribution, by_activity, interleave, passages
from vllm_surgery.localization.candidates import Candidate
from vllm_surgery.localization.ranking.activity import measure_activity
from vllm_surgery.localization.ranking.allowance import Allowance
from vllm_surgery.localization.ranking.gradients import gain_gradients
from vllm_surgery.localization.ranking.natural_gradient import KL_TARGETS, SIZES, set_candidates, single_candidates
from vllm_surgery.localization.ranking.scores import rank_by_activity
from vllm_surgery.localization.transcripts import Passage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from vllm_surgery.evaluation.records import Record
    from vllm_surgery.localization.ranking.natural_gradient import Direction
    from vllm_surgery.localization.search.evaluator import CandidateEvaluator
    from vllm_surgery.localization.settings import SearchSettings
    from vllm_surgery.model.checkpoint import ModelFolder
    from vllm_surgery.patch.units import UnitBlock

ACTIVITY_SHARE = 0.25
"""Of the time for rankings, where there are gradients too: forward passes take a fraction of what they take."""
MAX_PASSAGES = 32
"""Transcripts that are looked into, of those that loop and of those that don't: means over more hardly move."""

TOO_SHORT = "no loop is long enough to look into"
NO_BEGINNING = "the second judge alone sees loops, and it doesn't say where they begin, so no transcript ranks units"


@dataclass(frozen=True)
class Ranker:
    """Ranks the units of one model.

    Attributes:
        llm: the engine.
        model: the folder that it was loaded from.
        evaluator: whose reference replies are what healthy text is, and whose right answers a set of units shall spare.
        settings: of the search.
        quiet: no progress.
        told: is called with each transcript that is looked into.
    """

    llm: Any
    model: ModelFolder
    evaluator: CandidateEvaluator
    settings: SearchSettings
    quiet: bool = False
    told: Callable[[str], None] | None = None

    def rank(self, records: Sequence[Record], matter: Sequence[UnitBlock], seconds: float = math.inf) -> Attribution:
        """Candidates worth a try.

        Args:
            records: the unpatched model's answers.
            matter: blocks that loops need.
            seconds: that it may take. When they are up, fewer transcripts are looked into, which the notes say.

        Raises:
            EngineError: the engine can't be looked into.
        """
        transcripts = passages(records, self._backend.tokens_before)
        looping = [one for one in transcripts if one.repeats is not None][:MAX_PASSAGES]
        healthy = [one for one in transcripts if one.repeats is None][:MAX_PASSAGES]
        if not looping:
            return Attribution([], [], [NO_BEGINNING if not any(map(loops, records)) else TOO_SHORT])
        whole = Allowance(seconds)
        first = Allowance(seconds * ACTIVITY_SHARE if self.settings.gradients else seconds, self.told)
        active = self._by_activity(in_turn(looping, healthy), first)
        singles, sets, notes = self._by_gradients(looping, whole.rest(self.told))
        ranked = interleave([singles, active], matter, self.settings.singles)
        return Attribution(ranked, sets, [*first.cut, *notes])

    @property
    def _backend(self) -> OfflineBackend:
        return OfflineBackend(self.llm, self.settings.form)

    def _by_activity(self, transcripts: Sequence[Passage], allowance: Allowance) -> list[Candidate]:
        scored = rank_by_activity(measure_activity(self.llm, transcripts, allowance), self.model)
        scores = [one for one in scored if one.unit.kind in self.settings.kinds]
        return by_activity(scores[: 2 * self.settings.singles], mask=self.settings.mask)

    def _by_gradients(
        self, looping: Sequence[Passage], allowance: Allowance
    ) -> tuple[list[Candidate], list[Candidate], list[str]]:
        if not self.settings.gradients:
            return [], [], ["gradients were switched off"]
        try:
            found = gain_gradients(
                self.model.path,
                looping,
                self._healthy(),
                self._right(),
                seed=self.settings.seed,
                allowance=allowance,
                quiet=self.quiet,
            ).of_kinds(self.settings.kinds)
        except SurgeryError as error:
            return [], [], [f"no gradients: {error}"]
        count = 2 * self.settings.singles
        singles = [_candidate(one, "gradient") for one in single_candidates(found, self.settings.gains, count)]
        sets = [_candidate(one, "set") for one in set_candidates(found, SIZES, self._targets()) if len(one.gains) > 1]
        notes = [
            *allowance.cut,
            *(f"layer {layer} without some gradients: {why}" for layer, why in sorted(found.without.items())),
        ]
        return singles, sets, notes

    def _right(self) -> list[Passage]:
        """Right answers to tasks as transcripts. Whether they loop later, or were cut, is of no matter here."""
        return self._as_passages(
            (record.prompt, record.token_ids) for record in self.evaluator.right() if record.token_ids
        )

    def _targets(self) -> list[float]:
        return [target for target in KL_TARGETS if target <= self.settings.max_kl] or [self.settings.max_kl]

    def _healthy(self) -> list[Passage]:
        """The reference replies as transcripts."""
        encode, form = self._backend.encode, self.settings.form
        return self._as_passages((probe.asked(form), encode(probe.reply or "")) for _, probe in self.evaluator.texts)

    def _as_passages(self, answers: Iterable[tuple[str, list[int]]]) -> list[Passage]:
        """Transcripts of prompts, each with the tokens of an answer that doesn't loop."""
        before = self._backend.tokens_before
        prompts = [(before(prompt), answer) for prompt, answer in answers]
        return [Passage(prompt + answer, len(prompt)) for prompt, answer in prompts]


def in_turn(looping: Sequence[Passage], healthy: Sequence[Passage]) -> list[Passage]:
    """Both sorts by turns, so that what is left out when time is up is some of both. One that loops comes first."""
    longest = max(len(looping), len(healthy))
    return [one[place] for place in range(longest) for one in (looping, healthy) if place < len(one)]


def _candidate(direction: Direction, origin: str) -> Candidate:
    return Candidate.of(direction.gains, origin)
