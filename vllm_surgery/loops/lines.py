# SPDX-License-Identifier: Apache-2.0
"""Cuts tokens into the entries of lists, and says what each entry says without its markers and counters.

Two sorts of lists: lines, of which most begin with a number or a bullet; and pieces of one line, between commas or
inline numbers. A hash of letters and digits stands for what an entry says: case, decoration and white space don't
count, nor does how the tokenizer cut the text.
"""

from __future__ import annotations

from vllm_surgery.loops import entries
from vllm_surgery.loops.compiled import Integers, kernel
from vllm_surgery.loops.thresholds import BESIDE_TOKENS, ENTRIES, PIECES
from vllm_surgery.loops.tokens import (
    BASE,
    BULLET,
    CLOSE,
    CODE,
    COLUMNS,
    COMMA,
    CONTENT,
    DIGIT,
    GAP,
    LETTER,
    MODULUS,
    NEWLINE,
    OPEN,
    POINT,
    SPACE,
    content_hash,
)

POSITION, _GAP_BEFORE, _DIGIT_BEFORE = range(3)
"""Where the state keeps how many tokens were seen, and whether the last one ended in white space, or was a
number."""

LINE, PIECE = 3, 17
"""Where the state of each sort of entry begins."""

_PHASE, _FIRST, _SAID, _CONTENT, _MARKED, _NUMBER, _POWER, _BEFORE, _COUNTER, _OPENED, _ODD, _LETTERS, _GROUPS = range(
    13
)
"""Of an entry: how far it is read; its first token; hash of what it says; flags of its content; whether it had a
marker; a number that may be one, and its power; what it said before a bracket; whether only a number stood in it since;
whether it began with what opens a counter; flags that bare entries don't have, such as numbers, commas, code;
hash of its letters; and how many numbers it holds."""

_UNUSUAL = DIGIT | CODE | COMMA | OPEN
"""What bare entries don't hold."""

_START, _NUMBERED, _POINTED, _BODY = range(4)
"""Phases: nothing but markers yet; a number, which may be a marker; and what closes one; what the entry says."""

LINES = 32
PIECES_OF_LINE = LINES + entries.STATE
STATE = PIECES_OF_LINE + entries.STATE
RINGS = (LINES, PIECES_OF_LINE)
"""Where the states of the two rings begin, and the size of it all."""

_CHOICES = tuple(
    content_hash(word)
    for word in (
        "yes",
        "no",
        "true",
        "false",
        "none",
        "null",
        "nan",
        "na",
        "ok",
        "pass",
        "fail",
        "on",
        "off",
        "done",
        "x",
    )
)

_AND, _OR = content_hash("and"), content_hash("or")


@kernel
def advance(
    tokens: Integers, start: int, columns: Integers, lines: Integers, pieces: Integers, state: Integers, rules: Integers
) -> int:
    """Reads tokens from `start` on, up to the end or to an event, which the states of the rings note.

    Returns:
        The index after the last token read.
    """
    state[LINES + entries.EVENT] = entries.NOTHING
    state[PIECES_OF_LINE + entries.EVENT] = entries.NOTHING
    for index in range(start, len(tokens)):
        row = tokens[index] * COLUMNS
        known = 0 <= row < len(columns)
        flags = columns[row] if known else 0
        said = columns[row + 1] if known else 0
        power = columns[row + 2] if known else 1
        position = state[POSITION]
        _read_line(flags, said, power, state)
        _read_piece(flags, said, power, position, pieces, state, rules)
        if flags & NEWLINE:
            _close_line(position, lines, pieces, state, rules)
        state[POSITION] = position + 1
        state[_GAP_BEFORE] = flags & GAP
        state[_DIGIT_BEFORE] = flags & DIGIT
        _leave_if_over(state, LINES, position + 1, rules)
        _leave_if_over(state, PIECES_OF_LINE, position + 1, rules)
        if state[LINES + entries.EVENT] or state[PIECES_OF_LINE + entries.EVENT]:
            return index + 1
    return len(tokens)


@kernel
def _is_glued(flags: int, state: Integers) -> bool:
    """Whether a token goes on with a number right before it. Some tokenizers have a token for every digit."""
    return bool(flags & DIGIT and not flags & SPACE and not state[_GAP_BEFORE])


@kernel
def _leave_if_over(state: Integers, base: int, position: int, rules: Integers) -> None:
    if state[base + entries.LOOPING] and entries.has_left(state, base, position, rules):
        entries.leave(state, base)


def lasts(state: Integers, base: int, rules: Integers) -> bool:
    """Whether the loop of a ring lasts to the end of the answer.

    What follows its last whole entry may be one that was cut, but a line without a marker after lines that had one is
    something else.
    """
    position = state[POSITION]
    if not entries.lasts(state, base, position, rules):
        return False
    beside = state[LINE + _CONTENT] and not state[LINE + _MARKED] and state[base + entries.SORT] & entries.MARKED
    return bool(base != LINES or not beside or position - state[base + entries.END] < rules[BESIDE_TOKENS])


@kernel
def open_entry(state: Integers, base: int, first: int) -> None:
    """Begins an entry at the token `first`."""
    state[base + _PHASE] = _START
    state[base + _FIRST] = first
    state[base + _SAID] = 0
    state[base + _CONTENT] = 0
    state[base + _MARKED] = 0
    state[base + _COUNTER] = 0
    state[base + _OPENED] = 0
    state[base + _ODD] = 0
    state[base + _LETTERS] = 0
    state[base + _GROUPS] = 0


@kernel
def _say(state: Integers, base: int, flags: int, said: int, power: int) -> None:
    state[base + _SAID] = (state[base + _SAID] * power + said) % MODULUS
    state[base + _CONTENT] |= flags & CONTENT
    state[base + _PHASE] = _BODY


@kernel
def _say_number(state: Integers, base: int) -> None:
    _say(state, base, DIGIT, state[base + _NUMBER], state[base + _POWER])
    state[base + _GROUPS] += 1


@kernel
def _read_number(state: Integers, base: int, said: int, power: int) -> None:
    state[base + _NUMBER] = said
    state[base + _POWER] = power
    state[base + _PHASE] = _NUMBERED


@kernel
def _read_digit(state: Integers, base: int, said: int, power: int) -> None:
    state[base + _NUMBER] = (state[base + _NUMBER] * power + said) % MODULUS
    state[base + _POWER] = state[base + _POWER] * power % MODULUS


@kernel
def _read_line(flags: int, said: int, power: int, state: Integers) -> None:
    if flags & _UNUSUAL:
        state[LINE + _ODD] |= flags
    glued = _is_glued(flags, state)
    phase = state[LINE + _PHASE]
    if phase == _POINTED:
        phase = _after_point(state, glued)
    if phase == _START:
        phase = _at_start(flags, said, power, state)
    elif phase == _NUMBERED:
        phase = _after_number(flags, said, power, state, glued)
    if phase == _BODY:
        _read_body(state, LINE, flags, said, power)


@kernel
def _after_point(state: Integers, glued: bool) -> int:
    if glued:  # 3.5, 12:30: a number, not a marker.
        _say_number(state, LINE)
        return _BODY
    state[LINE + _MARKED] = 1
    state[LINE + _PHASE] = _START
    return _START


@kernel
def _at_start(flags: int, said: int, power: int, state: Integers) -> int:
    if flags & LETTER:
        return _BODY
    if flags & DIGIT:
        _read_number(state, LINE, said, power)
        return _NUMBERED
    if flags & BULLET:
        state[LINE + _MARKED] = 1
    elif flags & OPEN:
        state[LINE + _OPENED] = 1
    return _START


@kernel
def _after_number(flags: int, said: int, power: int, state: Integers, glued: bool) -> int:
    if glued:
        _read_digit(state, LINE, said, power)
        return _NUMBERED
    if flags & (POINT | BULLET) and not flags & CONTENT:
        state[LINE + _PHASE] = _POINTED
        return _POINTED
    if flags & LETTER and state[LINE + _OPENED]:  # "#17 Pikachu"
        state[LINE + _MARKED] = 1
        return _BODY
    if flags == SPACE | GAP:
        return _NUMBERED
    _say_number(state, LINE)
    return _BODY


@kernel
def _read_body(state: Integers, base: int, flags: int, said: int, power: int) -> None:
    """What an entry says. A number in brackets is a counter or a year and isn't part of it."""
    if flags & CONTENT:
        _say(state, base, flags, said, power)
        if flags & LETTER:
            state[base + _COUNTER] = 0
            state[base + _LETTERS] = (state[base + _LETTERS] * power + said) % MODULUS
        elif not state[_DIGIT_BEFORE] or flags & SPACE:
            state[base + _GROUPS] += 1
    elif flags & OPEN:
        state[base + _BEFORE] = state[base + _SAID]
        state[base + _COUNTER] = 1
    elif flags & CLOSE and state[base + _COUNTER]:
        state[base + _SAID] = state[base + _BEFORE]
        state[base + _COUNTER] = 0


@kernel
def _close_line(position: int, lines: Integers, pieces: Integers, state: Integers, rules: Integers) -> None:
    _close_last_piece(position, pieces, state, rules)
    if state[LINE + _PHASE] == _NUMBERED:
        _say_number(state, LINE)
    numbered = state[LINE + _PHASE] == _POINTED
    if state[LINE + _COUNTER]:
        state[LINE + _SAID] = state[LINE + _BEFORE]
    if (state[LINE + _CONTENT] or numbered) and not state[PIECES_OF_LINE + entries.LOOPING]:
        sort = entries.MARKED if numbered or state[LINE + _MARKED] else 0
        if not sort and not state[LINE + _ODD]:
            sort = entries.BARE
        if _is_counted(state, sort):
            sort |= entries.COUNTED
        _add(lines, entries.LINES, state, LINES, LINE, position + 1, sort, rules[ENTRIES], rules)
    open_entry(state, LINE, position + 1)


@kernel
def _is_counted(state: Integers, sort: int) -> bool:
    """Whether the line holds words and few numbers: with a marker two, such as years from and to, else one."""
    groups = state[LINE + _GROUPS]
    words = state[LINE + _CONTENT] & LETTER and not state[LINE + _ODD] & (CODE | COMMA)
    return bool(words and (groups == 1 or (groups == 2 and sort & entries.MARKED)))  # noqa: PLR2004


@kernel
def _add(
    ring: Integers, size: int, state: Integers, base: int, entry: int, end: int, sort: int, least: int, rules: Integers
) -> None:
    """Adds the entry whose state begins at `entry` to the ring whose state begins at `base`."""
    said = state[entry + _SAID]
    if _is_choice(said):
        sort |= entries.CHOICE
    entries.add(ring, size, state, base, said, state[entry + _LETTERS], state[entry + _FIRST], end, sort, least, rules)


@kernel
def _is_choice(said: int) -> bool:
    """Whether an entry answers a closed question, or is a value: a healthy list has few of them, again and again."""
    if 0 < said < BASE:  # One character.
        return True
    return bool(said in _CHOICES)


@kernel
def _read_piece(
    flags: int, said: int, power: int, position: int, pieces: Integers, state: Integers, rules: Integers
) -> None:
    if flags & CODE:
        entries.forget(state, PIECES_OF_LINE)
    phase = state[PIECE + _PHASE]
    glued = _is_glued(flags, state)
    if phase == _POINTED:
        if glued:
            _say_number(state, PIECE)
        else:  # "1. Pikachu 2. Pikachu": the number begins the next piece.
            _close_piece(state[PIECE + _NUMBER_FIRST], pieces, state, rules)
    elif phase == _NUMBERED:
        if glued:
            _read_digit(state, PIECE, said, power)
            return
        if flags & POINT and not flags & CONTENT:
            state[PIECE + _PHASE] = _POINTED
            return
        _say_number(state, PIECE)
    if flags & DIGIT and not glued:
        _read_number(state, PIECE, said, power)
        state[PIECE + _NUMBER_FIRST] = position
    elif flags & CONTENT and not (state[PIECE + _CONTENT] == 0 and said in (_AND, _OR)):
        _say(state, PIECE, flags, said, power)
    if flags & COMMA:
        _close_piece(position + 1, pieces, state, rules)


_NUMBER_FIRST = 13
"""Of a piece: the first token of the number that may be the next piece's marker."""


@kernel
def _close_piece(following: int, pieces: Integers, state: Integers, rules: Integers) -> None:
    """Adds the piece that ends before the token `following`, where the next begins."""
    if state[PIECE + _CONTENT] & LETTER and not state[LINES + entries.LOOPING]:
        sort = entries.MARKED
        _add(pieces, entries.PIECES_OF_LINE, state, PIECES_OF_LINE, PIECE, following, sort, rules[PIECES], rules)
    elif state[PIECE + _CONTENT]:
        entries.forget(state, PIECES_OF_LINE)
    open_entry(state, PIECE, following)


@kernel
def _close_last_piece(position: int, pieces: Integers, state: Integers, rules: Integers) -> None:
    """At the end of a line, which ends the list in it."""
    _close_piece(position + 1, pieces, state, rules)
    if state[PIECES_OF_LINE + entries.LOOPING]:
        entries.leave(state, PIECES_OF_LINE)
    entries.forget(state, PIECES_OF_LINE)
