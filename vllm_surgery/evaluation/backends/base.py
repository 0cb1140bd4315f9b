# SPDX-License-Identifier: Apache-2.0
"""The interface of backends: a server, or an engine in this process, that answers the jobs of a trial."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vllm_surgery.errors import SurgeryError
    from vllm_surgery.evaluation.arms import Arm
    from vllm_surgery.evaluation.records import Key


TOP_LOGPROBS = 20
"""Likeliest tokens asked for at each place: as many as a server gives that was started without ``--max-logprobs``."""


@dataclass(frozen=True)
class Job:
    """One answer to be had."""

    key: Key
    prompt: str
    sampling: dict[str, Any]


class Text(NamedTuple):
    """A reply whose log-probabilities are to be had, under one arm."""

    arm: str
    set: str
    probe: str
    prompt: str
    reply: str

    @property
    def key(self) -> tuple[str, str, str]:
        """The arm, the set and the probe."""
        return self.arm, self.set, self.probe


@dataclass
class Held:
    """Arms that are held in slots side by side.

    Attributes:
        ids: of the patch set of each arm that is held.
        refused: of each that can't be held, the reason.
    """

    ids: dict[str, str | None] = field(default_factory=dict)
    refused: dict[str, SurgeryError] = field(default_factory=dict)


@dataclass(frozen=True)
class Completion:
    """One answer.

    Attributes:
        text: what the model thought, where the server tells that apart, and what it said.
        token_ids: of both, as they were made.
        finish: ``stop`` where the model ended it.
    """

    text: str
    token_ids: list[int]
    finish: str


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probabilities of a text's tokens, one after another.

    Attributes:
        targets: the text's tokens.
        logprobs: of each target, natural.
        tops: for each place the likeliest tokens and their log-probabilities, the target always among them.
    """

    targets: list[int]
    logprobs: list[float]
    tops: list[dict[int, float]]


@dataclass(frozen=True)
class EngineFacts:
    """The model that answers, and the engine that serves it.

    Attributes:
        name: what requests call the model.
        root: where it was loaded from: a folder or a name on the Hub.
        context: tokens that prompt and answer may have together; None where it isn't known.
        engine: what serves it, with its version.
    """

    name: str
    root: str
    context: int | None
    engine: str


class Backend(Protocol):
    """Answers, under one arm at a time, or under several at once where patches have slots."""

    @property
    def room(self) -> int:
        """Patch sets that can be held side by side; 0 where there are no slots, so that arms are swapped in."""

    def facts(self) -> EngineFacts:
        """The model and the engine."""

    def serve(self, arm: Arm) -> str | None:
        """Serves what `arm` says from now on, and nothing else. Gives the patch set's id; None where it can't be known.

        Raises:
            SurgeryError: it can't.
        """

    def hold(self, arms: Sequence[Arm]) -> Held:
        """Serves all of `arms` from now on: each answer is made under the arm that its job names.

        Args:
            arms: with at most `room` patch sets, and none that is another server.

        Raises:
            SurgeryError: the backend is gone. An arm that can't be held is none: it is told of.
        """

    def answer(self, jobs: Sequence[Job]) -> Iterator[list[tuple[Job, Completion]]]:
        """The answers, in any order, as they come. What is given was answered under the arms that are served.

        Raises:
            SurgeryError: one couldn't be answered, or somebody else changed what is served.
        """

    def logprobs(self, texts: Sequence[Text]) -> Iterator[tuple[Text, TokenLogprobs]]:
        """Token log-probabilities of each reply as the answer to its prompt, as they come.

        Raises:
            SurgeryError: it can't say.
        """
