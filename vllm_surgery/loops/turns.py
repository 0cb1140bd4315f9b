# SPDX-License-Identifier: Apache-2.0
"""Doom loops: reasoning goes in circles.

A turn begins with a cue at the start of a sentence ("Wait", "Hmm", "Moment", "等等"). A loop is a row of turns, none
of them too long, most of which bring no word that the turns before didn't have. Or there is no cue, and a few
sentences come again and again in another order: a plan that is never carried out.

What this can see: a model that comes back to the same words and the same candidates, word for word or shuffled. What
it can't see: whether the reasoning is right; circles in other words each time; cues that it doesn't know. Reasoning
that makes headway says "Wait" too, and so does somebody who checks forty things once each; but each of their turns
has a word of its own. A number counts as one together with the word before it, so that "case 9" is new though 9
isn't.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from vllm_surgery.loops import entries as entry_lists
from vllm_surgery.loops.counters import FACTOR
from vllm_surgery.loops.cues import CUES, ENDING_CUES, OPENERS, PREFIXES
from vllm_surgery.loops.entries import SENTENCE
from vllm_surgery.loops.kernels import Layout, Record, Records, kernel
from vllm_surgery.loops.scanner import BREAK, MARK, MODULUS, NUMBER, WORD
from vllm_surgery.loops.signs import COMMAS, SENTENCE_ENDS, WIDE_ENDS

_WORDS: Final = 1024
"""Places for the words of a row of turns."""

_SHARED: Final = 8
"""Places that a word may stand in. More words than that push each other out, which makes them new again."""

_TURNS: Final = 64
_ROW: Final = 40_503
"""Tells the words of one row from those of the next."""

Turns = Layout(
    count=0,
    row=1,
    looping=0,
    onset=0,
    end=0,
    repeats=0,
    event=0,
    latest=0,
    motif=0,
    before=0,
    fresh=1,
    prefix=0,
    sentence_first=0,
    pending=0,
    opening_first=0,
    first=(_TURNS, 0, np.int32),
    news=(_TURNS, 0, np.int32),
    known=(_WORDS, 0, np.int32),
)
"""Turns begun in this row, and the row's number; whether it is a loop, since which token, up to which, with how many
turns; what the last call brought about; first token of the latest turn, and of the one by which the loop was found;
hash of the word before; whether a sentence has just begun; what of a cue of several words was read; first token of
the sentence; the token of a cue that holds only if a comma follows, or 0; of each turn: its first token, and how
many words in it were new; and the row's words."""

Sentence = Layout(said=0, words=0, first=-1, ended=0)
"""Of the sentence that is being read: the hash of what it says, its words, its first token, and whether it may have
ended."""

NOTHING, BEGUN, LEFT = range(3)
"""Events."""


@kernel
def advance(
    units: Records,
    start: int,
    count: int,
    turns_record: Records,
    sentences: Records,
    plans: Records,
    rules_record: Records,
) -> int:
    """Reads units from `start` on, up to `count` or to an event, which `turns_record` or `plans` note.

    Args:
        units: see `scanner`.
        start: see above.
        count: see above.
        turns_record: one of `Turns`.
        sentences: one of `Sentence`.
        plans: one of `EntryList`: the sentences.
        rules_record: see `Thresholds`.

    Returns:
        The index after the last unit read.
    """
    turns, plan, rules = turns_record[0], plans[0], rules_record[0]
    turns.event = NOTHING
    plan.event = entry_lists.NOTHING
    for index in range(start, count):
        unit = units[index]
        _read_turn(unit.kind, unit.said, unit.token, unit.spaced, turns, rules)
        _read_sentence(unit.kind, unit.said, unit.token, unit.spaced, sentences[0], plan, turns.looping == 0, rules)
        if turns.looping and unit.token - turns.latest > rules.turn_tokens:
            _leave(turns)
        if plan.looping and entry_lists.is_over(plan, unit.token, rules):
            entry_lists.leave(plan, plan.new == 0)
        if turns.event or plan.event:
            return index + 1
    return count


@kernel
def _read_turn(kind: int, said: int, token: int, spaced: int, turns: Record, rules: Record) -> None:
    if turns.pending:
        if kind == MARK and said in COMMAS:
            _begin_turn(turns, rules)
        turns.pending = 0
    if kind == BREAK or (kind == MARK and said in SENTENCE_ENDS):
        turns.fresh = 1
        turns.prefix = 0
    elif kind != MARK:
        if turns.fresh == 1:
            turns.sentence_first = token
            turns.fresh = 2
        if turns.fresh:
            _look_for_a_cue(kind, said, token, turns, rules)
        _learn(kind, said, turns)
        turns.before = said


@kernel
def _look_for_a_cue(kind: int, said: int, token: int, turns: Record, rules: Record) -> None:
    """Reads a word near the start of a sentence, which may be one of self-correction."""
    if kind == NUMBER:
        turns.fresh = 0
        return
    phrase = (turns.prefix * FACTOR + said) % MODULUS
    if phrase in CUES:
        turns.fresh = 0
        _begin_turn(turns, rules)
    elif phrase in ENDING_CUES:
        turns.fresh = 0
        turns.pending = 1
    elif phrase in PREFIXES:
        turns.prefix = phrase
    elif turns.prefix == 0 and said in OPENERS:
        turns.fresh = 2
    else:
        turns.fresh = 0


@kernel
def _learn(kind: int, said: int, turns: Record) -> None:
    """Notes whether a word is new in this row of turns."""
    if turns.count == 0:
        return
    word = (turns.before * FACTOR + said) % MODULUS if kind == NUMBER else said
    mark = (word + turns.row * _ROW) % MODULUS
    if not _knows(mark, turns):
        turns.news[turns.count % _TURNS] += 1


@kernel
def _knows(mark: int, turns: Record) -> bool:
    """True if a word was noted before; if not, it is now, in the place of the oldest of those that share its places."""
    first = (mark ^ mark >> 10 ^ mark >> 20) % (_WORDS // _SHARED) * _SHARED
    for place in range(first, first + _SHARED):
        if turns.known[place] == mark:
            return True
    for place in range(first + _SHARED - 1, first, -1):
        turns.known[place] = turns.known[place - 1]
    turns.known[first] = mark
    return False


@kernel
def _begin_turn(turns: Record, rules: Record) -> None:
    """Ends the turn before, judges the row, and begins the next turn."""
    first = turns.sentence_first
    if turns.count and first - turns.latest > rules.turn_tokens:
        turns.count = 0
        turns.row += 1
    circling = turns.count >= rules.turns and _circles(turns, rules)
    if turns.looping:
        if circling:
            turns.repeats += 1
            turns.end = first
        else:
            _leave(turns)
    elif circling:
        _begin_loop(turns, first)
    turns.count += 1
    turns.first[turns.count % _TURNS] = first
    turns.news[turns.count % _TURNS] = 0
    turns.latest = first


@kernel
def _circles(turns: Record, rules: Record) -> bool:
    """True if most of the latest turns brought no new word, and several in a row. In a loop half of them are enough."""
    window = min(rules.turns, _TURNS - 2)
    stale = 0
    row = 0
    longest = 0
    for turn in range(turns.count - window + 1, turns.count + 1):
        row = 0 if turns.news[turn % _TURNS] else row + 1
        stale += 1 if row else 0
        longest = max(longest, row)
    if turns.looping:
        return bool(2 * stale >= window)
    return bool(100 * stale >= rules.stale_turns * window and longest >= min(rules.stale_row, window))


@kernel
def _begin_loop(turns: Record, end: int) -> None:
    """The loop began with the row: its first round brought what the others turn over."""
    onset = max(turns.count - _TURNS + 2, 1)
    turns.looping = 1
    turns.onset = turns.first[onset % _TURNS]
    turns.end = end
    turns.repeats = turns.count - onset + 1
    turns.motif = turns.latest
    turns.event = BEGUN


@kernel
def _leave(turns: Record) -> None:
    turns.looping = 0
    turns.event = LEFT


@kernel
def _read_sentence(
    kind: int, said: int, token: int, spaced: int, sentence: Record, plan: Record, idle: bool, rules: Record
) -> None:
    if sentence.ended and (spaced or kind == BREAK or sentence.ended > 1):
        _close_sentence(token, sentence, plan, idle, rules)
    sentence.ended = 0
    if kind == BREAK:
        _close_sentence(token + 1, sentence, plan, idle, rules)
    elif kind == MARK:
        if said in WIDE_ENDS:
            sentence.ended = 2
        elif said in SENTENCE_ENDS:
            sentence.ended = 1
    else:
        if sentence.first < 0:
            sentence.first = token
        sentence.said = (sentence.said * FACTOR + said) % MODULUS
        sentence.words += 1 if kind == WORD else 0


@kernel
def _close_sentence(end: int, sentence: Record, plan: Record, idle: bool, rules: Record) -> None:
    if sentence.first >= 0:
        entry_lists.add(plan, sentence.said, 0, sentence.first, end, sentence.words, SENTENCE, idle, rules)
    sentence.said = 0
    sentence.words = 0
    sentence.first = -1
