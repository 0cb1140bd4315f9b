# SPDX-License-Identifier: Apache-2.0
"""Decay: the latest entries of a list have collapsed onto few answers.

Entries are kept in a ring as hashes of what they say; whether an entry is a line, a piece of a line, a sentence or what
stands between two counters is for others to say. The list has collapsed when its latest n entries hold so few different
answers that each stands there several times, on average, and hardly any is new. That alone is true of labels too, of
knitting and of doses; so it must also be shown that it *is* a collapse:

- the list named other things before, most of them once; or
- it named anything else before, however few, and then nothing but one answer, for long; or
- it says the same from its first entry on, for very long; or
- it goes round: entries follow each other as they did before, or each comes again at the same distance.

Few answers in no order from the first entry on are labels.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from vllm_surgery.loops.kernels import Layout, Record, Records, kernel

ENTRIES: Final = 128
"""Entries kept: a dozen answers ten times each."""

MARKED, RECORD, PIECE, SENTENCE, CHOICE, COUNTED, NUMBERED, BLOCK = (1 << bit for bit in range(8))
"""Flags of an entry: it has a list marker; it is a record of a data format; a piece of a line; a sentence; one of few
possible answers, such as yes and no; it holds a number or two besides words; it lies between counters; it is of several
lines."""

_SORT: Final = MARKED | RECORD | PIECE | SENTENCE
_LIST: Final = MARKED | PIECE | SENTENCE
_MOST_WORDS: Final = 9999
_BEFORE: Final = 48
"""Entries before the collapse that are looked at."""

SAID, LETTERS = 0, 1
"""Parts of an entry that are compared: all of it, or its words alone."""

EntryList = Layout(
    count=0,
    start=0,
    event=0,
    looping=0,
    proven=0,
    long=0,
    compared=0,
    onset_entry=0,
    onset=0,
    end=0,
    repeats=0,
    new=0,
    loop_traits=0,
    motif=0,
    motif_end=0,
    window=0,
    answers=0,
    strays=0,
    said=(ENTRIES, 0, np.int32),
    letters=(ENTRIES, 0, np.int32),
    first=(ENTRIES, 0, np.int32),
    words=(ENTRIES, 0, np.int16),
    traits=(ENTRIES, 0, np.int16),
)
"""Entries seen; the first one of the list that goes on; what the last call brought about; whether the list is in a
loop, whether it can't be one of labels that closed by itself, whether its entries are too long for labels, what is
compared, the loop's first entry and token, one past its last, its entries, how many new ones came since, its flags, the
entry by which it was found; of the collapse that was judged last: entries, different answers, strays; and of each
entry: hashes of what it says and of its words, its first token, how many words it has, its flags."""

NOTHING, BEGUN, LEFT, TAKEN_BACK = range(4)
"""Events. A loop is taken back if it was none: a list that closed by itself and had shown nothing but few answers."""


@kernel
def add(
    entries: Record, said: int, letters: int, first: int, end: int, words: int, flags: int, idle: bool, rules: Record
) -> None:
    """Adds an entry and notes what that brought about.

    Args:
        entries: a record of `EntryList`.
        said: hash of what the entry says.
        letters: hash of its words.
        first: its first token.
        end: one past its last.
        words: how many it has.
        flags: see above.
        idle: whether no other list is in a loop, so that this one may begin one.
        rules: see `Thresholds`.
    """
    _append(entries, said, letters, first, words, flags)
    if entries.looping:
        _go_on(entries, said if entries.compared == SAID else letters, end, rules)
    elif idle:
        compared = _judge(entries, end, 0, rules)
        if compared >= 0:
            _begin(entries, compared, first, end, rules)


@kernel
def judge_cut(entries: Record, end: int, rules_record: Records) -> bool:
    """Judges the list by lower floors, since its answer was cut; begins a loop if there is one."""
    rules = rules_record[0]
    if entries.looping or entries.count == 0:
        return False
    compared = _judge(entries, end, 1, rules)
    if compared >= 0:
        _begin(entries, compared, entries.first[(entries.count - 1) % ENTRIES], end, rules)
    return bool(compared >= 0)


@kernel
def leave(entries: Record, by_itself: bool) -> None:
    """Ends the loop. `by_itself`: the list was closed, and no new entries came."""
    entries.looping = 0
    taken_back = by_itself and not entries.proven and not entries.long and entries.repeats < ENTRIES
    entries.event = TAKEN_BACK if taken_back else LEFT


@kernel
def forget(entries: Record) -> None:
    """Begins a new list: what was said before no longer counts."""
    entries.count = 0
    entries.start = 0


@kernel
def is_over(entries: Record, position: int, rules: Record) -> bool:
    """True if the tokens since the last entry that belongs to the loop are too many for one more."""
    typical = (entries.end - entries.onset) // max(entries.repeats, 1)
    return bool(position - entries.end > max(rules.leave_tokens, 2 * typical))


def typical_tokens(entries: Record) -> int:
    """Tokens of an entry of the loop."""
    return int((entries.end - entries.onset) // max(entries.repeats, 1))


@kernel
def _append(entries: Record, said: int, letters: int, first: int, words: int, flags: int) -> None:
    slot = entries.count % ENTRIES
    if entries.count and (entries.traits[(entries.count - 1) % ENTRIES] ^ flags) & _LIST:
        entries.start = entries.count
    entries.said[slot] = said
    entries.letters[slot] = letters
    entries.first[slot] = first
    entries.words[slot] = min(words, _MOST_WORDS)
    entries.traits[slot] = flags
    entries.count += 1


@kernel
def value(entries: Record, compared: int, entry: int) -> int:
    """The compared part of an entry, as a hash."""
    return int(entries.said[entry % ENTRIES] if compared == SAID else entries.letters[entry % ENTRIES])


@kernel
def _stands(entries: Record, compared: int, what: int, start: int, stop: int) -> bool:
    """True if one of the entries from `start` to `stop` says it."""
    for entry in range(stop - 1, start - 1, -1):  # noqa: SIM110 - Numba compiles no generators here.
        if value(entries, compared, entry) == what:
            return True
    return False


@kernel
def _go_on(entries: Record, what: int, end: int, rules: Record) -> None:
    oldest = max(entries.onset_entry, entries.count - ENTRIES)
    if _stands(entries, entries.compared, what, oldest, entries.count - 1):
        entries.new = 0
        entries.repeats += 1
        entries.end = end
        return
    entries.new += 1
    if entries.new >= rules.leave_entries:
        leave(entries, False)


@kernel
def _judge(entries: Record, end: int, cut: int, rules: Record) -> int:
    """The part of entries by which the list has collapsed; -1 if it hasn't."""
    flags = entries.traits[(entries.count - 1) % ENTRIES]
    if _has_settled(entries, SAID, cut, rules):
        return SAID
    if not flags & CHOICE and _has_collapsed(entries, SAID, end, cut, rules):
        return SAID
    if flags & COUNTED and _counts_on(entries, rules):
        return LETTERS
    return -1


@kernel
def _has_settled(entries: Record, compared: int, cut: int, rules: Record) -> bool:
    """True if the list says one answer for long that it seldom said before, as one label of many would have been."""
    flags = entries.traits[(entries.count - 1) % ENTRIES]
    if not flags & (MARKED | PIECE) or (flags & CHOICE and not cut):  # Fields of records are often all the same.
        return False
    if flags & NUMBERED:  # Between counters, "7. Apollo 7" says nothing but "Apollo".
        return False
    run = _latest_run(entries, compared)
    before = min(entries.count - entries.start, ENTRIES) - run
    if run < (rules.cut_labels if flags & CHOICE else rules.settled) or before < 1:
        return False
    what = value(entries, compared, entries.count - 1)
    among = 0
    for entry in range(entries.count - run - before, entries.count - run):
        among += 1 if value(entries, compared, entry) == what else 0
    entries.window = run
    entries.strays = 0
    entries.proven = 1
    return bool(2 * among <= before)


@kernel
def _latest_run(entries: Record, compared: int) -> int:
    """How many of the list's latest entries say the same as the last one."""
    what = value(entries, compared, entries.count - 1)
    most = min(entries.count - entries.start, ENTRIES)
    run = 1
    while run < most and value(entries, compared, entries.count - 1 - run) == what:
        run += 1
    return run


@kernel
def _counts_on(entries: Record, rules: Record) -> bool:
    """True if the list has collapsed but for numbers in its entries."""
    if not _measure(entries, LETTERS, rules.counted_copies, rules.counted_entries):
        return False
    if _answers(entries, LETTERS) > 1 and not _is_proven(entries, LETTERS, 0, 0, rules):
        return False
    others = 0
    for entry in range(entries.count - entries.window, entries.count):
        if not entries.traits[entry % ENTRIES] & COUNTED:
            others += 1
    return bool(8 * others <= entries.window)


@kernel
def _has_collapsed(entries: Record, compared: int, end: int, cut: int, rules: Record) -> bool:
    flags = entries.traits[(entries.count - 1) % ENTRIES]
    copies = rules.sentence_copies if flags & SENTENCE else rules.entry_copies
    least = rules.entry_copies
    if not _measure(entries, compared, copies, least) or 8 * entries.strays > entries.window:
        return False
    if flags & SENTENCE:
        if not _measure(entries, compared, copies, rules.sentences) or _brings_news(entries, compared):
            return False
        return bool(_words(entries) >= rules.sentence_words)
    if _is_proven(entries, compared, end, cut, rules):
        entries.proven = 1
        return True
    entries.proven = 0
    return _goes_on_from_the_start(entries, compared, end, cut, rules)


@kernel
def _measure(entries: Record, compared: int, copies: int, least: int) -> bool:
    """Finds the fewest latest entries, `least` at least, in which each answer stands `copies` times on average."""
    count = entries.count
    different = 0
    for window in range(1, min(count - entries.start, ENTRIES) + 1):
        entry = count - window
        if entries.traits[entry % ENTRIES] & CHOICE:
            return False
        if not _stands(entries, compared, value(entries, compared, entry), entry + 1, count):
            different += 1
        if window < copies * different and different > ENTRIES // copies:
            return False
        if window >= least and window >= copies * different:
            entries.window = window
            entries.answers = different
            _widen(entries, compared)
            return True
    return False


@kernel
def _widen(entries: Record, compared: int) -> None:
    """Goes back to the first entry that says one of the answers, over entries that nearly all do."""
    count = entries.count
    start = count - entries.window
    oldest = max(entries.start, count - ENTRIES)
    while start < count and not _stands(entries, compared, value(entries, compared, start), start + 1, count):
        start += 1
    strays = _strays(entries, compared, start)
    while start > oldest:
        if _stands(entries, compared, value(entries, compared, start - 1), start, count):
            start -= 1
        elif _is_stray(entries, compared, start - 1, oldest) and 8 * (strays + 1) <= count - start:
            start -= 3
            strays += 1
        else:
            break
    entries.window = count - start
    entries.strays = strays


@kernel
def _is_stray(entries: Record, compared: int, entry: int, oldest: int) -> bool:
    """True if the two entries before say one of the answers again."""
    if entry - 2 < oldest:
        return False
    one = _stands(entries, compared, value(entries, compared, entry - 1), entry + 1, entries.count)
    return bool(one and _stands(entries, compared, value(entries, compared, entry - 2), entry + 1, entries.count))


@kernel
def _strays(entries: Record, compared: int, start: int) -> int:
    """How many entries from `start` on say what no other does."""
    strays = 0
    for entry in range(start, entries.count):
        what = value(entries, compared, entry)
        if not _stands(entries, compared, what, entry + 1, entries.count):
            strays += 0 if _stands(entries, compared, what, start, entry) else 1
    return strays


@kernel
def _brings_news(entries: Record, compared: int) -> bool:
    """True if more than one in twenty of the later half of the window says something for the first time."""
    count = entries.count
    start = count - entries.window
    middle = count - entries.window // 2
    news = 0
    for entry in range(middle, count):
        if not _stands(entries, compared, value(entries, compared, entry), start, entry):
            news += 1
    return bool(40 * news > entries.window)


@kernel
def _is_proven(entries: Record, compared: int, end: int, cut: int, rules: Record) -> bool:
    """True if the list named other things before, most of them once, and hardly any of those that it says now."""
    count = entries.count
    start = count - entries.window
    oldest = max(entries.start, start - _BEFORE, count - ENTRIES)
    among = 0
    others = 0
    different = 0
    for entry in range(oldest, start):
        what = value(entries, compared, entry)
        if _stands(entries, compared, what, start, count):
            among += 1
        else:
            others += 1
            if not _stands(entries, compared, what, entry + 1, start):
                different += 1
    if different < 2 or 2 * different < others or 3 * among > start - oldest:  # noqa: PLR2004
        return False
    return _is_long_enough(entries, end, different, cut, rules)


@kernel
def _is_long_enough(entries: Record, end: int, before: int, cut: int, rules: Record) -> bool:
    flags = entries.traits[(entries.count - 1) % ENTRIES]
    least = rules.entries if before > rules.few_before else rules.entries_after_few
    if before == 2:  # noqa: PLR2004
        least += rules.entries
    if cut:
        least = min(least, rules.cut_entries)
    if flags & PIECE:
        least = max(least, rules.pieces)
    elif not flags & _SORT:
        least = max(least, rules.bare_entries)
    if entries.window >= least:
        return True
    long = end - entries.first[(entries.count - entries.window) % ENTRIES] >= rules.entry_tokens
    return bool(long and flags & (MARKED | RECORD) and before > rules.few_before)


@kernel
def _goes_on_from_the_start(entries: Record, compared: int, end: int, cut: int, rules: Record) -> bool:
    """True if a list that named nothing else before is a loop all the same."""
    flags = entries.traits[(entries.count - 1) % ENTRIES]
    whole = entries.count - entries.start <= entries.window + 1 or entries.window >= ENTRIES - 1
    answers = _answers(entries, compared)
    if answers == 1 and whole:
        return _says_the_same(entries, end, cut, rules)
    least = rules.cut_cycle if cut else rules.cycle_entries
    if flags & PIECE or not flags & _SORT:
        least = max(least, rules.bare_entries)
    if answers > 1 and entries.window >= least and _is_regular(entries, compared, answers, rules):
        entries.proven = 1 if flags & MARKED and not flags & NUMBERED and answers >= rules.cycle_answers else 0
        return True
    if flags & _SORT and _words(entries) >= rules.random_words and entries.window >= 4 * rules.entry_copies:
        return True
    if (
        not flags & (_LIST | NUMBERED)
        and _words(entries) >= rules.label_words
        and entries.window >= rules.bare_copies * answers
    ):
        return bool(entries.window >= rules.bare_entries)
    if not cut:
        return False
    nearly_whole = 4 * (entries.count - entries.start - entries.window) <= entries.window
    least = rules.cut_cycle if _words(entries) > rules.label_words else rules.cut_labels
    return bool((whole or nearly_whole) and entries.window >= least)


@kernel
def _says_the_same(entries: Record, end: int, cut: int, rules: Record) -> bool:
    """True if a list of one answer is long enough. All items may have got the same label."""
    flags = entries.traits[(entries.count - 1) % ENTRIES]
    words = _words(entries)
    if cut:
        least = rules.single_blocks if flags & RECORD else rules.cut_single
    elif words <= rules.label_words:
        least = rules.single_labels
    elif flags & RECORD and not flags & BLOCK and words < rules.single_words:
        least = rules.single_records
    else:
        least = rules.single_blocks
    if entries.window >= least:
        return True
    covered = end - entries.first[(entries.count - entries.window) % ENTRIES]
    return bool(flags & MARKED and not flags & BLOCK and words >= rules.single_words and covered >= rules.single_tokens)


@kernel
def _answers(entries: Record, compared: int) -> int:
    """How many different answers stand more than once in the window."""
    count = entries.count
    start = count - entries.window
    answers = 0
    for entry in range(start, count):
        what = value(entries, compared, entry)
        first = not _stands(entries, compared, what, start, entry)
        if first and _stands(entries, compared, what, entry + 1, count):
            answers += 1
    return answers


@kernel
def _words(entries: Record) -> int:
    """Words of an entry of the window, on average."""
    words = 0
    for entry in range(entries.count - entries.window, entries.count):
        words += entries.words[entry % ENTRIES]
    return int(words // entries.window)


@kernel
def _is_regular(entries: Record, compared: int, answers: int, rules: Record) -> bool:
    """True if entries follow their predecessors as they did the last time, or come again at the same distance.

    Labels in no order do so by chance: as often as two of them are the same.
    """
    count = entries.count
    start = count - entries.window
    foretold = 0
    asked = 0
    soon = 0
    same = 0
    for entry in range(start + 1, count):
        what = value(entries, compared, entry)
        before = _latest(entries, compared, value(entries, compared, entry - 1), start, entry - 1)
        if before >= 0:
            asked += 1
            foretold += 1 if value(entries, compared, before + 1) == what else 0
        last = _latest(entries, compared, what, start, entry)
        if last >= 0:
            soon += 1 if 2 * (entry - last) < answers else 0
        same += 1 if last == entry - 1 else 0
    if asked == 0 or 8 * same > asked:
        return False
    return bool(100 * foretold >= rules.regular * asked or (answers >= 5 and 12 * soon <= asked))  # noqa: PLR2004


@kernel
def _latest(entries: Record, compared: int, what: int, start: int, stop: int) -> int:
    """The latest of the entries from `start` to `stop` that says it; -1 if none does."""
    for entry in range(stop - 1, start - 1, -1):
        if value(entries, compared, entry) == what:
            return entry
    return -1


@kernel
def _begin(entries: Record, compared: int, first: int, end: int, rules: Record) -> None:
    onset = entries.count - entries.window
    entries.looping = 1
    entries.long = 1 if _words(entries) >= rules.random_words else 0
    entries.compared = compared
    entries.onset_entry = onset
    entries.onset = entries.first[onset % ENTRIES]
    entries.end = end
    entries.repeats = entries.window
    entries.loop_traits = entries.traits[(entries.count - 1) % ENTRIES]
    entries.motif = first
    entries.motif_end = end
    entries.new = 0
    entries.event = BEGUN
