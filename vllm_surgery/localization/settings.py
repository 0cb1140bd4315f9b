# SPDX-License-Identifier: Apache-2.0
"""Settings of a search: its probes, the edits it may try, and their bounds. The same settings give the same search."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, field_validator

from vllm_surgery.errors import PatchError
from vllm_surgery.evaluation.protocol import Cell, Protocol
from vllm_surgery.localization.candidates import NAME, Candidate
from vllm_surgery.patch.units import (
    Kind,
    Unit,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

GREEDY, SAMPLED, SIDE = "greedy", "sampled", "side"

GAINS = (0.0, -1.0, 3.0, 0.5, -0.8, 5.0, 2.0)
"""Gains of single units. Silence and inversion are the paper's; amplifying has helped where they didn't."""


class SearchSettings(BaseModel):
    """Everything that a search depends on but the model and the budget.

    Attributes:
        kinds: of units that are tried; those that the model has not are left out.
        search: probe sets for the search. It sees no answer to any other.
        held_out: probe sets that the edit it found is judged by, once.
        ordinary: sets of everyday requests in the held-out trial.
        text: sets of reference replies, on which probabilities are compared while the search goes on.
        tasks: sets of short lists and skills, which it spares.
        held_out_text: the reference replies of the held-out trial.
        held_out_tasks: its tasks.
        seeds: sampled answers to each search probe, besides the greedy one.
        held_out_seeds: sampled answers to each held-out probe.
        max_tokens: of an answer to a probe for loops.
        task_tokens: of an answer to a task.
        gains: tried with single units.
        mask: whether masking an expert is tried too.
        singles: how many single units are tried at the first, shortest look.
        sets: how many sets are.
        beam: how many of the best are joined with each other.
        max_units: of a set that grows one by one.
        max_kl: nats a token on reference replies: an edit that moves probabilities further isn't taken.
        max_perplexity: of those replies, over the unpatched model's.
        gradients: whether the model is also differentiated, with transformers.
        shams: controls in the held-out trial.
        penalty: repetition penalty of another control.
        seed: of all draws.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kinds: list[Kind] = Field(default=["neurons", "experts"], min_length=1)
    search: list[str] = ["lists:search"]
    held_out: list[str] = ["paper", "lists:held-out"]
    ordinary: list[str] = ["healthy"]
    text: list[str] = ["text"]
    tasks: list[str] = ["short", "skills"]
    held_out_text: list[str] = ["held-out-text"]
    held_out_tasks: list[str] = ["held-out-short", "held-out-skills"]
    seeds: int = Field(default=2, ge=0)
    held_out_seeds: int = Field(default=2, ge=0)
    temperature: float = Field(default=0.7, gt=0)
    top_p: float = Field(default=0.95, gt=0, le=1)
    top_k: int = Field(default=64, ge=0)
    max_tokens: int = Field(default=512, ge=16)
    task_tokens: int = Field(default=128, ge=1)
    gains: list[float] = Field(default=list(GAINS), min_length=1)
    mask: bool = True
    singles: int = Field(default=96, ge=1)
    sets: int = Field(default=24, ge=0)
    beam: int = Field(default=4, ge=1)
    max_units: int = Field(default=8, ge=1)
    max_kl: float = Field(default=0.05, gt=0)
    max_perplexity: float = Field(default=1.02, gt=1)
    gradients: bool = True
    shams: int = Field(default=3, ge=1)
    penalty: float = 1.15
    seed: int = 20261124

    @field_validator("gains")
    @classmethod
    def _can_be_written(cls, gains: list[float]) -> list[float]:
        for gain in gains:
            try:
                Candidate.of({Unit("neurons", 0, 0): gain}, "settings").patch(NAME, {})
            except PatchError as error:
                raise ValueError(error.detail) from None
        return gains

    def search_protocol(self) -> Protocol:
        """The protocol of the search itself."""
        return Protocol(name="search", cells=self._cells(self.search, [], self.seeds, self.tasks), text=self.text)

    def held_out_protocol(self) -> Protocol:
        """The protocol by which the edit that was found is judged."""
        cells = self._cells(self.held_out, self.ordinary, self.held_out_seeds, self.held_out_tasks)
        return Protocol(name="held-out", cells=cells, text=self.held_out_text)

    def _cells(self, sets: Sequence[str], ordinary: Sequence[str], seeds: int, tasks: Sequence[str]) -> list[Cell]:
        cells = [Cell(name=GREEDY, sets=[*sets, *ordinary], temperature=0, max_tokens=self.max_tokens)]
        if seeds:
            how = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
            cells.append(Cell(name=SAMPLED, sets=list(sets), seeds=seeds, max_tokens=self.max_tokens, **how))
        if tasks:
            cells.append(Cell(name=SIDE, sets=list(tasks), temperature=0, max_tokens=self.task_tokens))
        return cells
