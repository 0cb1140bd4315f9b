# SPDX-License-Identifier: Apache-2.0
"""The numbers by which a loop is called one."""

from __future__ import annotations

from dataclasses import dataclass, replace

MAX_PERIOD = 1024
"""The longest period of a verbatim loop, in tokens. A longer one would need a longer memory per request."""


@dataclass(frozen=True)
class Thresholds:
    """The floors from which a repetition is a loop.

    Chosen on the development half of the corpora in `tests/corpora` for no false alarm first, and for as early a
    find as that leaves. The curves are in `docs/detectors.md`. `cut_` stands for the floor of an answer that its
    budget has cut in the loop: a healthy matrix of zeros ends by itself.

    Attributes:
        poor_tokens: tokens that a verbatim loop covers if its period has few different tokens: rows and matrices of
            zeros, rules, alignment rows, empty cells.
        poor_variety: that many different tokens are few if most of them come more than once in the period. A row of a
            matrix has up to 7: digits, point, comma, brackets, end of line.
        least_variety: that many are few in any case: "0.0, " has 4, an empty cell of a table 5.
        tokens: tokens that any other verbatim loop covers. Refrains and repeated lines of data stay below.
        copies: copies of a verbatim loop's period: three in a row are said for effect.
        long_period: from this period on `long_copies` are enough. Nobody says 96 tokens three times for effect, and an
            answer of 768 tokens hasn't room for more copies of a long period.
        long_copies: see above.
        cut_tokens: `tokens`, and `poor_tokens`, of an answer that was cut in the loop.
        cut_copies: `copies` of such a one.
        last_tokens: `cut_tokens`, if nobody says how an answer ended that ends in a loop of words.
        entries: entries over which a list has collapsed that named other things before.
        few_before: if it named no more different things than these, `entries_after_few` are needed: with few labels for
            many items it would happen by chance.
        entries_after_few: see above.
        entry_copies: how often each of the list's last answers stands there, on average.
        entry_tokens: in place of `entries`, tokens that the entries cover, where they are long.
        pieces: `entries` for the pieces of a line, which prose and code have too.
        bare_entries: `entries` for lines without numbers or bullets, which healthy columns are too.
        bare_copies: `entry_copies` for them.
        label_words: so many words, what is the same in all entries included, and an entry may be a label.
        single_labels: entries of a list of such ones that says the same from its first entry on.
        settled: entries in a row with one answer that a list seldom gave before, from which on they are no labels.
        single_blocks: `single_labels` for longer entries.
        single_words: words in each such entry from which on `single_tokens` of them are enough.
        single_tokens: see above.
        single_records: the same of short records of a data format, whose fields are often all the same.
        random_words: words in each entry from which on a list is no list of labels, though it has few entries in no
            order from the start.
        cycle_entries: entries of a list that goes round among few or many answers.
        cycle_answers: answers of such a list from which on it is a loop even if it closes by itself. Knitting and
            shifts have fewer.
        regular: percent of the entries of such a list that follow their predecessor as they did the last time.
        counted_entries: `entries` for lines that are the same but for a number or two that don't count on, as "Helium:
            17" is.
        counted_copies: `entry_copies` for them.
        cut_entries: `entries` and `entries_after_few` of an answer that was cut.
        cut_single: `single_labels` of such a one.
        cut_cycle: `cycle_entries` of such a one.
        cut_labels: entries with few answers in no order, from the first entry on, of such a one. Labels end by
            themselves.
        leave_entries: so many new entries in a row, and the list has left its loop. One or two strange ones come in
            loops of the demo model.
        leave_tokens: so many tokens (or twice the typical entry) without an entry that belongs to it, likewise.
        rest_tokens: so many tokens (or twice the typical entry) after the last whole entry may be one that the end of
            the answer has cut; with more, the list was left.
        beside_tokens: so many tokens after it that don't begin as an entry does, such as a closing sentence, likewise.
        sentences: sentences that come again in another order, by which a plan goes in circles without a cue.
        sentence_copies: how often each of them stands there, on average.
        sentence_words: words of each, on average.
        window_bits: hundredths of a bit per word below which a window of words has collapsed. A dozen words in no order
            have 358; the least that healthy text has is in `docs/detectors.md`.
        window_news: words of the window's later part that may be new: a name or a number that a template is filled
            with.
        turns: turns of self-correction in a row, each begun by a cue such as "Wait", that go in circles.
        turn_tokens: the longest turn. More tokens without a cue, and the model has left the circle.
        stale_turns: percent of these turns that bring no word that the turns before didn't have.
        stale_row: so many of them in a row. Who checks one thing after another takes up to four turns for each.
    """

    poor_tokens: int = 384
    poor_variety: int = 8
    least_variety: int = 5
    tokens: int = 96
    copies: int = 4
    long_period: int = 96
    long_copies: int = 3
    cut_tokens: int = 96
    cut_copies: int = 3
    last_tokens: int = 192
    entries: int = 8
    few_before: int = 6
    entries_after_few: int = 16
    entry_copies: int = 4
    entry_tokens: int = 64
    pieces: int = 16
    bare_entries: int = 24
    bare_copies: int = 8
    label_words: int = 3
    single_labels: int = 96
    settled: int = 32
    single_blocks: int = 34
    single_words: int = 12
    single_tokens: int = 96
    single_records: int = 72
    random_words: int = 8
    cycle_entries: int = 40
    cycle_answers: int = 5
    regular: int = 70
    counted_entries: int = 40
    counted_copies: int = 8
    cut_entries: int = 8
    cut_single: int = 16
    cut_cycle: int = 24
    cut_labels: int = 64
    leave_entries: int = 3
    leave_tokens: int = 48
    rest_tokens: int = 16
    beside_tokens: int = 4
    sentences: int = 32
    sentence_copies: int = 4
    sentence_words: int = 4
    window_bits: int = 390
    window_news: int = 8
    turns: int = 10
    turn_tokens: int = 200
    stale_turns: int = 75
    stale_row: int = 5

    def strict(self) -> Thresholds:
        """Thresholds for doing what can't be undone, such as stopping an answer: twice the length or more."""
        return replace(
            self,
            poor_tokens=2 * self.poor_tokens,
            tokens=2 * self.tokens,
            copies=self.copies + 2,
            long_copies=self.long_copies + 1,
            entries=2 * self.entries,
            entries_after_few=2 * self.entries_after_few,
            entry_copies=self.entry_copies + 2,
            entry_tokens=2 * self.entry_tokens,
            pieces=2 * self.pieces,
            bare_entries=2 * self.bare_entries,
            settled=2 * self.settled,
            single_labels=2 * self.single_labels,
            single_blocks=2 * self.single_blocks,
            single_tokens=2 * self.single_tokens,
            single_records=2 * self.single_records,
            cycle_entries=2 * self.cycle_entries,
            counted_entries=2 * self.counted_entries,
            sentences=2 * self.sentences,
            turns=2 * self.turns,
        )
