# SPDX-License-Identifier: Apache-2.0
"""A loop in an answer, and how an answer ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["verbatim", "decay", "collapse", "doom"]
Outcome: TypeAlias = Literal["terminal", "escaped", "running"]

Ending: TypeAlias = Literal["stop", "cut", "unknown"]
"""How an answer ended: by itself; cut by its budget or by its client; nobody says."""

Evidence: TypeAlias = Literal["stream", "ending"]
"""Evidence by which a loop was called one: floors that hold wherever it stands; or lower ones, since the answer was cut
in it."""

KINDS: tuple[Kind, ...] = ("verbatim", "decay", "collapse", "doom")


@dataclass(frozen=True)
class Loop:
    """One loop in one answer. Indices count the answer's tokens from 0.

    Attributes:
        kind: verbatim, the tokens are periodic; decay, the entries of a list have collapsed onto a few answers;
            collapse, few words come in no order; doom, reasoning goes in circles. Each kind is looked for by itself, so
            one stretch of an answer may be in a loop of more than one kind; but a collapse is only one where neither
            verbatim nor decay says more.
        onset: the first token of the loop. Verbatim: of the first copy, exact. Decay: of the first entry that belongs
            to the collapse, its marker included. Collapse: of the first window. Doom: of the first turn that goes in
            circles.
        period: tokens per copy. Verbatim: the primitive period, exact. Decay: per entry, on average. Doom: per turn, on
            average. Collapse: per word, on average.
        copies: how often the period fits between onset and end.
        end: one past the last token known to be in the loop.
        outcome: running, until the model leaves the loop (escaped) or the answer ends in it (terminal).
        motif: the first tokens of what repeats, at most `MOTIF_TOKENS`. Verbatim: of the period. Decay and doom: of the
            entry or turn by which the loop was found. Collapse: of the loop.
        evidence: what it was called a loop by.
    """

    kind: Kind
    onset: int
    period: int
    copies: float
    end: int
    outcome: Outcome
    motif: tuple[int, ...] = ()
    evidence: Evidence = "stream"

    @property
    def tokens(self) -> int:
        """Tokens in the loop."""
        return self.end - self.onset


MOTIF_TOKENS = 16
"""Enough to recognise a loop by, and a log line stays a line."""


def ending_of(finish_reason: str | None) -> Ending:
    """How an answer ended, in the words of vLLM's and OpenAI's `finish_reason`."""
    if finish_reason in ("length", "abort", "max_tokens", "repetition"):
        return "cut"
    return "stop" if finish_reason in ("stop", "end_turn", "tool_calls", "stop_sequence") else "unknown"
