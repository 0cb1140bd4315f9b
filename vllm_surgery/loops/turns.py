# SPDX-License-Identifier: Apache-2.0
"""Doom loops: self-correction goes in circles.

A turn begins with a cue at the start of a sentence ("Wait", "Hmm", "Actually", "Let me check again"). A loop is a row
of turns, none of them too long, in which hardly any pair of neighbouring words is new.

What this can see: a model that says "Wait" again and again and comes back to the same words and the same candidates,
word for word or shuffled. What it can't see: whether the reasoning is right; circles in other words each time; circles
in languages other than English; cues that it doesn't know. Long reasoning that makes headway says "Wait" too, and its
word pairs stay new: that is what tells the two apart, and where in doubt nothing is reported. A turn that ends with an
answer looks like any other turn: an answer is only seen by its length, as text without a cue.
"""

from __future__ import annotations

from vllm_surgery.loops.compiled import Integers, kernel
from vllm_surgery.loops.thresholds import ROUND_NOVELTY, TURN_NOVELTY, TURN_TOKENS, TURNS
from vllm_surgery.loops.tokens import COLUMNS, CONTENT, DIGIT, MODULUS, MORE, SENTENCE, SPACE, content_hash

(
    POSITION,
    WORD,
    BEFORE,
    FRESH,
    ASIDE,
    COUNT,
    LOOPING,
    ONSET,
    END,
    REPEATS,
    EVENT,
    LATEST,
    WORD_FIRST,
    MOTIF,
    SENTENCE_FIRST,
) = range(15)
"""Where the state keeps: tokens seen; hash of the word that is being read (-1: none) and of the one before; whether a
sentence has just begun; how much of "let me" was read; turns begun; whether they are a loop, since which token, up to
which, with how many turns; what the last call brought about; the first token of the latest turn; the first token of the
word; the first token of the turn by which the loop was found, and of the sentence."""
STATE = 15

NOTHING, BEGUN, LEFT = range(3)
"""Events."""

PAIRS = 1024
"""Word pairs remembered, by a hash that says where: the words of about ten turns."""

TURNS_KEPT, TURN_FIELDS = 32, 3
_FIRST, _WORDS, _FRESH_PAIRS = range(3)
"""Of a turn: its first token, its words, and the pairs among them that were new."""

_TAG_SHIFT = 10  # 2**10 is `PAIRS`. Seven more bits tell pairs of the same place apart; one in 128 looks known.
_TAG_MASK = 0x7F
_PAIR_FACTOR = 1_000_003


def _words(text: str) -> tuple[int, ...]:
    return tuple(content_hash(word) for word in text.split())


_CUES = _words("wait hmm hm actually alternatively no oh")
"""Begin a turn where they begin a sentence."""

_OPENINGS = _words("but so ok okay and well")
"""May stand before a cue."""

_LET, _ME = _words("let me")
_AGAIN = _words("re recheck check double reconsider rethink verify recount think try start")
"""Begin a turn after "let me". Of "re-check" and "double-check" the first part is enough."""

_JUST_BEGUN, _OPENING = 1, 2
"""Of a sentence: no word yet; only words that may stand before a cue."""

_NEITHER, _AFTER_LET, _AFTER_LET_ME = range(3)


@kernel
def advance(
    tokens: Integers, start: int, columns: Integers, pairs: Integers, turns: Integers, state: Integers, rules: Integers
) -> int:
    """Reads tokens from `start` on, up to the end or to an event, which it notes in the state.

    Returns:
        The index after the last token read.
    """
    state[EVENT] = NOTHING
    for index in range(start, len(tokens)):
        row = tokens[index] * COLUMNS
        known = 0 <= row < len(columns)
        flags = columns[row] if known else 0
        _read(flags, columns[row + 1] if known else 0, columns[row + 2] if known else 1, pairs, turns, state, rules)
        state[POSITION] += 1
        if state[LOOPING] and state[POSITION] - state[LATEST] > rules[TURN_TOKENS]:
            _leave(state)
        if state[EVENT]:
            return index + 1
    return len(tokens)


@kernel
def _read(
    flags: int, said: int, power: int, pairs: Integers, turns: Integers, state: Integers, rules: Integers
) -> None:
    if state[WORD] >= 0 and (flags & (SPACE | DIGIT) or not flags & CONTENT):
        _end_word(pairs, turns, state, rules)
    if flags & CONTENT:
        if state[WORD] < 0:
            state[WORD] = 0
            state[WORD_FIRST] = state[POSITION]
        state[WORD] = (state[WORD] * power + said) % MODULUS
        if not flags & MORE or flags & DIGIT:
            _end_word(pairs, turns, state, rules)
    if flags & SENTENCE:
        state[FRESH] = _JUST_BEGUN
        state[ASIDE] = _NEITHER


@kernel
def _end_word(pairs: Integers, turns: Integers, state: Integers, rules: Integers) -> None:
    word = state[WORD]
    state[WORD] = -1
    if state[FRESH] == _JUST_BEGUN:
        state[FRESH] = _OPENING
        state[SENTENCE_FIRST] = state[WORD_FIRST]
    if state[FRESH] and _is_cue(word, state):
        _begin_turn(turns, state, rules)
    _remember(word, pairs, turns, state)
    state[BEFORE] = word


@kernel
def _is_cue(word: int, state: Integers) -> bool:
    """Whether `word`, near the start of a sentence, makes the sentence one of self-correction."""
    aside = state[ASIDE]
    if aside == _NEITHER and word in _OPENINGS:
        return False
    if aside == _NEITHER and word == _LET:
        state[ASIDE] = _AFTER_LET
        return False
    if aside == _AFTER_LET and word == _ME:
        state[ASIDE] = _AFTER_LET_ME
        return False
    state[FRESH] = 0
    state[ASIDE] = _NEITHER
    return bool(word in _AGAIN) if aside == _AFTER_LET_ME else bool(word in _CUES)


@kernel
def _remember(word: int, pairs: Integers, turns: Integers, state: Integers) -> None:
    pair = (state[BEFORE] * _PAIR_FACTOR + word) % MODULUS
    place = pair % PAIRS
    tag = (pair >> _TAG_SHIFT) & _TAG_MASK
    slot = state[COUNT] % TURNS_KEPT * TURN_FIELDS
    turns[slot + _WORDS] += 1
    if pairs[place] != tag:
        pairs[place] = tag
        turns[slot + _FRESH_PAIRS] += 1


@kernel
def _begin_turn(turns: Integers, state: Integers, rules: Integers) -> None:
    """Ends the turn before, judges the row, and begins the next turn."""
    first = state[SENTENCE_FIRST]
    if first - state[LATEST] > rules[TURN_TOKENS]:
        state[COUNT] = 0  # The row is broken.
    window = min(rules[TURNS], TURNS_KEPT - 1)
    circling = state[COUNT] >= window and _circles(turns, state, window, rules)
    if state[LOOPING]:
        if circling:
            state[REPEATS] += 1
            state[END] = first
        else:
            _leave(state)
    elif circling:
        _begin_loop(turns, state, window, first, rules)
    state[COUNT] += 1
    slot = state[COUNT] % TURNS_KEPT * TURN_FIELDS
    turns[slot + _FIRST] = first
    turns[slot + _WORDS] = 0
    turns[slot + _FRESH_PAIRS] = 0
    state[LATEST] = first


@kernel
def _circles(turns: Integers, state: Integers, window: int, rules: Integers) -> bool:
    words = 0
    fresh = 0
    for turn in range(state[COUNT] - window + 1, state[COUNT] + 1):
        slot = turn % TURNS_KEPT * TURN_FIELDS
        words += turns[slot + _WORDS]
        fresh += turns[slot + _FRESH_PAIRS]
    return bool(100 * fresh <= rules[TURN_NOVELTY] * words)


@kernel
def _begin_loop(turns: Integers, state: Integers, window: int, end: int, rules: Integers) -> None:
    words = 0
    fresh = 0
    turn = state[COUNT]
    onset = turn
    while turn > max(state[COUNT] - TURNS_KEPT + 1, 0):  # Turn 0 is what stood before the first cue.
        slot = turn % TURNS_KEPT * TURN_FIELDS
        words += turns[slot + _WORDS]
        fresh += turns[slot + _FRESH_PAIRS]
        if 100 * fresh <= rules[ROUND_NOVELTY] * words or turn > state[COUNT] - window:
            onset = turn
        turn -= 1
    state[LOOPING] = 1
    state[ONSET] = turns[onset % TURNS_KEPT * TURN_FIELDS + _FIRST]
    state[END] = end
    state[REPEATS] = state[COUNT] - onset + 1
    state[MOTIF] = state[LATEST]
    state[EVENT] = BEGUN


@kernel
def _leave(state: Integers) -> None:
    state[LOOPING] = 0
    state[EVENT] = LEFT
