# SPDX-License-Identifier: Apache-2.0
"""The numbers by which a loop is called one."""

from __future__ import annotations

from dataclasses import astuple, dataclass

MAX_PERIOD = 1024
"""The longest period of a verbatim loop, in tokens. A longer one would need a longer memory per request."""


@dataclass(frozen=True)
class Thresholds:
    """From when on a repetition is a loop.

    Chosen on the corpora in `tests/corpora` for no false alarm first, and for as early a find as that leaves. The
    curves are in `docs/detectors.md`.

    Attributes:
        poor_tokens: tokens that a verbatim loop covers if its period has few different tokens: rows and matrices of
            zeros, rules, alignment rows, empty cells. At 384, 4 of 7,714 healthy passages fire, matrices of zeros
            all; at 256 there are 11, at 512 none, but then loops of 384 tokens are missed.
        poor_variety: that many different tokens are few if most of them come more than once in the period. A row of
            a matrix has up to 7: digits, point, comma, brackets, end of line.
        least_variety: that many are few in any case: "0.0, " has 4, an empty cell of a table 5.
        tokens: tokens that any other verbatim loop covers. Refrains and repeated lines of data stay below.
        copies: copies of a verbatim loop's period: three in a row are said for effect.
        long_period: from this period on `long_copies` are enough. Nobody says 96 tokens three times for effect, and an
            answer of 768 tokens hasn't room for more copies of a long period.
        long_copies: see above.
        entries: entries over which a list has collapsed: two answers, four times each.
        entry_copies: how often each of its answers stands there, on average: as `copies`.
        entry_tokens: in place of `entries`, tokens that the entries cover, where they are long.
        pieces: `entries` for the pieces of a comma list in one line, which prose and code have too.
        leave_entries: so many new entries in a row, and the list has left its loop. One or two strange ones come in
            loops of the demo model.
        leave_tokens: so many tokens (or twice the typical entry) without an entry that belongs to it, likewise.
        cut_tokens: so many tokens (or twice the typical entry) after the last whole entry may be one that the end of
            the answer has cut; with more, the list was left.
        beside_tokens: so many tokens after it that don't begin as an entry does, such as a closing sentence, likewise.
        bare_entries: `entries` for lines without numbers or bullets, which healthy columns are too.
        bare_copies: `entry_copies` for them.
        counted_entries: `entries` for lines that are the same but for one or two numbers in them, as "Helium: 17" is.
            With 32, 6 of 120 healthy lists ("Apollo 11", "Chapter 7") fire, with 40 none; of 7 such loops that were
            labelled by hand 6 are found.
        counted_copies: `entry_copies` for them.
        turns: turns of self-correction in a row, each begun by a cue such as "Wait", that go in circles.
        turn_tokens: the longest turn. More tokens without a cue, and the model has left the circle.
        turn_novelty: percent of word pairs, in these turns, that weren't there shortly before. At 25 no healthy
            reasoning fires, and 92 % of the planted circles do.
        round_novelty: the same, from the loop's onset to where it was found. The first round is new, so there is more.
    """

    poor_tokens: int = 384
    poor_variety: int = 8
    least_variety: int = 5
    tokens: int = 96
    copies: int = 4
    long_period: int = 96
    long_copies: int = 3
    entries: int = 8
    entry_copies: int = 4
    entry_tokens: int = 64
    pieces: int = 16
    leave_entries: int = 3
    leave_tokens: int = 48
    cut_tokens: int = 16
    bare_entries: int = 24
    bare_copies: int = 8
    counted_entries: int = 40
    counted_copies: int = 8
    beside_tokens: int = 4
    turns: int = 10
    turn_tokens: int = 200
    turn_novelty: int = 25
    round_novelty: int = 50

    def rules(self) -> tuple[int, ...]:
        """The numbers in the order in which the kernels take them."""
        return astuple(self)


(
    POOR_TOKENS,
    POOR_VARIETY,
    LEAST_VARIETY,
    TOKENS,
    COPIES,
    LONG_PERIOD,
    LONG_COPIES,
    ENTRIES,
    ENTRY_COPIES,
    ENTRY_TOKENS,
    PIECES,
    LEAVE_ENTRIES,
    LEAVE_TOKENS,
    CUT_TOKENS,
    BARE_ENTRIES,
    BARE_COPIES,
    COUNTED_ENTRIES,
    COUNTED_COPIES,
    BESIDE_TOKENS,
    TURNS,
    TURN_TOKENS,
    TURN_NOVELTY,
    ROUND_NOVELTY,
) = range(23)
"""Where each number stands in `Thresholds.rules`."""
