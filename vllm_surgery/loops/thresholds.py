# SPDX-License-Identifier: Apache-2.0
"""The numbers by which a loop is called one."""

from __future__ import annotations

from dataclasses import astuple, dataclass

MAX_PERIOD = 1024
"""The longest period of a verbatim loop, in tokens. A longer one would need a longer memory per request."""


@dataclass(frozen=True)
class Thresholds:
    """From when on a repetition is a loop. `docs/detectors.md` has the curves.

    Attributes:
        poor_tokens: tokens that a verbatim loop covers if its period has few different tokens: rows and matrices of
            zeros, rules, alignment rows, empty cells.
        poor_variety: that many different tokens are few if most of them come more than once in the period.
        least_variety: that many are few in any case.
        tokens: tokens that any other verbatim loop covers.
        copies: copies of a verbatim loop's period; for a long period, `long_copies`.
        long_period: verbatim periods from this on are long: nothing healthy says so much twice in a row.
        long_copies: see `copies`.
        entries: entries over which a list has collapsed.
        entry_copies: how often each of its answers stands there, on average.
        entry_tokens: in place of `entries`, tokens that the entries cover, where they are long.
        pieces: `entries` for the pieces of a comma list in one line, which prose and code have too.
        leave_entries: so many new entries in a row, and the list has left its loop.
        leave_tokens: so many tokens (or twice the typical entry) without an entry that belongs to it, likewise.
        cut_tokens: so many tokens (or twice the typical entry) after the last whole entry may be one that the end of
            the answer has cut; with more, the list was left.
        bare_entries: `entries` for lines without numbers or bullets, which healthy columns are too.
        bare_copies: `entry_copies` for them.
        counted_entries: `entries` for lines that are the same but for one or two numbers in them, as "Helium: 17" is.
        counted_copies: `entry_copies` for them.
        beside_tokens: so many tokens after it that don't begin as an entry does, such as a closing sentence, likewise.
        turns: turns of self-correction in a row, each begun by a cue such as "Wait", that go in circles.
        turn_tokens: the longest turn. More tokens without a cue, and the model has left the circle.
        turn_novelty: percent of word pairs, in these turns, that weren't there shortly before.
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
