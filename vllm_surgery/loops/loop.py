# SPDX-License-Identifier: Apache-2.0
"""What the detectors find."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["verbatim", "decay", "doom"]
Outcome: TypeAlias = Literal["terminal", "escaped", "running"]

KINDS: tuple[Kind, ...] = ("verbatim", "decay", "doom")


@dataclass(frozen=True)
class Loop:
    """One loop in one answer. Indices count the answer's tokens from 0.

    Attributes:
        kind: verbatim, the tokens are periodic; decay, the entries of a list have collapsed onto a few answers; doom,
            self-correction goes in circles. Each kind is looked for by itself, so one stretch of an answer may be in a
            loop of more than one kind.
        onset: the first token of the loop. Verbatim: of the first copy, exact. Decay: of the first entry that belongs
            to the collapse, its marker included. Doom: of the first turn that goes in circles.
        period: tokens per copy. Verbatim: the primitive period, exact. Decay: per entry, on average. Doom: per turn, on
            average.
        copies: how often the period fits between onset and end.
        end: one past the last token known to be in the loop.
        outcome: running, until the model leaves the loop (escaped) or the answer ends in it (terminal).
        motif: the first tokens of what repeats, at most `MOTIF_TOKENS`. Verbatim: of the period. Decay and doom: of the
            entry or turn by which the loop was found.
    """

    kind: Kind
    onset: int
    period: int
    copies: float
    end: int
    outcome: Outcome
    motif: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens in the loop."""
        return self.end - self.onset


MOTIF_TOKENS = 16
"""Enough to recognise a loop by, and a log line stays a line."""
