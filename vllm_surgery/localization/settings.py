# SPDX-License-Identifier: Apache-2.0
"""Settings of a search: its probes, the edits it may try, and their bounds. The same settings give the same search.

The command line makes its options of them, so what takes long to import is imported where it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, field_validator

from vllm_surgery.errors import PatchError
from vllm_surgery.patch.units import Unit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm_surgery.evaluation.protocol import Cell, Protocol

SearchedKind: TypeAlias = Literal["neurons", "experts"]
"""The kinds of units that are searched. A shared expert's neurons can be edited, but nothing measures them yet."""

GREEDY, SAMPLED, SIDE = "greedy", "sampled", "side"

GAINS = (0.0, -1.0, 3.0, 0.5, -0.8, 5.0, 2.0)
"""Gains of single units. Silence and inversion are the paper's; amplifying has helped where they didn't."""


class SearchSettings(BaseModel):
    """Everything that a search depends on but the model and the budget.

    The texts of the fields are also the help of their options.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    kinds: list[SearchedKind] = Field(default=["neurons", "experts"], min_length=1)
    """units to try: neurons, experts; those that the model has not are left out"""
    form: Literal["chat", "completion"] = "chat"
    """how prompts are put: chat, or completion for models without a chat template"""
    search: list[str] = ["wide-lists:search"]
    """probe sets for the search, which sees no answer to any other"""
    choice: list[str] = ["wide-lists:choice"]
    """probe sets by which one of the edits that the search found is chosen; none: by the search's own"""
    held_out: list[str] = ["wide-lists:held-out"]
    """probe sets that the edit it found is judged by, once"""
    ordinary: list[str] = ["healthy"]
    """everyday requests in the held-out trial"""
    text: list[str] = ["text"]
    """reference replies, on which probabilities are compared while the search goes on"""
    tasks: list[str] = ["wide-tasks:search"]
    """tasks that the search spares"""
    choice_text: list[str] = ["choice-text"]
    """reference replies of the choice"""
    choice_tasks: list[str] = ["wide-tasks:choice"]
    """tasks of the choice"""
    held_out_text: list[str] = ["held-out-text"]
    """reference replies of the held-out trial"""
    held_out_tasks: list[str] = ["wide-tasks:held-out"]
    """tasks of the held-out trial"""
    first: int | None = Field(default=None, ge=1)
    """no more than so many prompts of each search set, the first ones"""
    choice_first: int | None = Field(default=None, ge=1)
    """the same of each set of the choice"""
    held_out_first: int | None = Field(default=None, ge=1)
    """the same of each held-out set"""
    seeds: int = Field(default=2, ge=0)
    """sampled answers to each search probe, besides the greedy one"""
    held_out_seeds: int = Field(default=2, ge=0)
    """sampled answers to each held-out probe"""
    choice_seeds: int = Field(default=0, ge=0)
    """sampled answers to each probe of the choice, besides the greedy one"""
    temperature: float = Field(default=0.7, gt=0)
    top_p: float = Field(default=0.95, gt=0, le=1)
    top_k: int = Field(default=64, ge=0)
    max_tokens: int = Field(default=512, ge=16)
    """of an answer that may loop, in the search"""
    choice_tokens: int | None = Field(default=None, ge=16)
    """the same in the choice and in the held-out trial; none: as many as in the search"""
    task_tokens: int = Field(default=128, ge=1)
    """of an answer to a task"""
    gains: list[float] = Field(default=list(GAINS), min_length=1)
    """tried with single units"""
    mask: bool = True
    """whether masking an expert is tried too"""
    singles: int = Field(default=96, ge=1)
    """single units tried at most, at the first, lowest fidelity"""
    sets: int = Field(default=24, ge=0)
    """sets of units tried at most"""
    beam: int = Field(default=4, ge=1)
    """how many of the best are joined with each other"""
    max_units: int = Field(default=8, ge=1)
    """of a set that grows one by one"""
    max_kl: float = Field(default=0.05, gt=0)
    """nats a token on reference replies: an edit that moves probabilities further isn't taken"""
    max_perplexity: float = Field(default=1.02, gt=1)
    """of reference replies, over the model's own"""
    gradients: bool = True
    """whether the model is also differentiated, with transformers"""
    shams: int = Field(default=3, ge=1)
    """controls in the held-out trial"""
    penalty: float = 1.15
    """repetition penalty of another control"""
    seed: int = 20261124
    """of all draws"""

    @field_validator("gains")
    @classmethod
    def _can_be_written(cls, gains: list[float]) -> list[float]:
        from vllm_surgery.localization.candidates import NAME, Candidate

        for gain in gains:
            try:
                Candidate.of({Unit("neurons", 0, 0): gain}, "settings").patch(NAME, {})
            except PatchError as error:
                raise ValueError(error.detail) from None
        return gains

    def search_protocol(self) -> Protocol:
        """The protocol of the search itself."""
        from vllm_surgery.evaluation.protocol import Protocol

        cells = self._cells(self.search, self.seeds, self.tasks, self.max_tokens, self.first)
        return Protocol(name="search", cells=cells, text=self.text, form=self.form)

    def for_choice(self) -> SearchSettings:
        """The same settings with the choice's probes in the place of the search's."""
        own = {"search": self.choice, "text": self.choice_text, "tasks": self.choice_tasks, "seeds": self.choice_seeds}
        cut = {"max_tokens": self.choice_tokens or self.max_tokens, "first": self.choice_first}
        return self.model_copy(update={**own, **cut})

    def held_out_protocol(self) -> Protocol:
        """The protocol by which the edit that was found is judged."""
        from vllm_surgery.evaluation.protocol import Protocol

        greedy, *more = self._cells(
            self.held_out,
            self.held_out_seeds,
            self.held_out_tasks,
            self.choice_tokens or self.max_tokens,
            self.held_out_first,
        )
        greedy = greedy.model_copy(update={"sets": [*greedy.sets, *self.ordinary]})
        return Protocol(name="held-out", cells=[greedy, *more], text=self.held_out_text, form=self.form)

    def _cells(
        self, sets: Sequence[str], seeds: int, tasks: Sequence[str], max_tokens: int, first: int | None
    ) -> list[Cell]:
        """Cells of answers that may loop, to the first prompts of each set, and one of tasks, to all."""
        from vllm_surgery.evaluation.protocol import Cell

        cells = [Cell(name=GREEDY, sets=list(sets), temperature=0, max_tokens=max_tokens, first=first)]
        if seeds:
            how = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
            cells.append(Cell(name=SAMPLED, sets=list(sets), seeds=seeds, max_tokens=max_tokens, first=first, **how))
        if tasks:
            cells.append(Cell(name=SIDE, sets=list(tasks), temperature=0, max_tokens=self.task_tokens))
        return cells
