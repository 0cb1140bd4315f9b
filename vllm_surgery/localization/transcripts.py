# SPDX-License-Identifier: Apache-2.0
"""Transcripts as the search looks at them: the rows of a forward pass before a loop, and those inside it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Passage:
    """A prompt and its answer.

    Row r of a forward pass reads token r and predicts token r + 1.

    Attributes:
        tokens: of the prompt, its template included, and of the answer.
        start: the answer's first token, as an index into `tokens`; at least 1.
        repeats: the first token of the loop's second copy, where what came before comes again, as an index into
            `tokens`; None where the answer doesn't end in a loop.
    """

    tokens: list[int]
    start: int
    repeats: int | None = None

    @property
    def before(self) -> range:
        """The rows that predict the answer's tokens until it repeats itself."""
        return range(self.start - 1, (len(self.tokens) if self.repeats is None else self.repeats) - 1)

    @property
    def after(self) -> range:
        """The rows that predict tokens of the loop."""
        return range(0) if self.repeats is None else range(self.repeats - 1, len(self.tokens) - 1)
