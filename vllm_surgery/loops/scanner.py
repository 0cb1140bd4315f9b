# SPDX-License-Identifier: Apache-2.0
"""Cuts tokens into units: words, numbers, signs, ends of lines. All detectors but the verbatim one read these.

A unit doesn't depend on how the tokenizer cuts text: tokens are read byte by byte, so that digits of any script are
numbers even where a token holds half of one. Case doesn't count.
"""

from __future__ import annotations

from typing import Final

from vllm_surgery.loops.characters import CHARACTERS, DIGIT, LETTER, LINE_END, SIGN, SPACE, WHOLE
from vllm_surgery.loops.kernels import Integers, Layout, Record, Records, kernel

MODULUS = (1 << 31) - 1
"""Hashes are polynomials of characters modulo this prime; products stay below 2**63."""

BASE = 1_000_003

WORD, NUMBER, MARK, BREAK = range(1, 5)
"""Kinds of unit: a word; a number; a sign that isn't white space; the end of a line."""

UNIT = Layout(kind=0, said=0, value=0, token=0, spaced=0)
"""Of a unit: its kind; the hash of what it says (a sign: the character); a number's value, -1 if it has more digits
than anything that counts; the token in which it begins; whether white space stands before it."""

UNITS = 1024
"""Room for units. Scanning pauses when fewer than a token may make are left."""

_UNITS_OF_TOKEN: Final = 128
"""Units that a token may make; what a longer one has beyond is not read."""

_DIGITS: Final = 7
_PAUSE: Final = UNITS - _UNITS_OF_TOKEN - 2
_REPLACEMENT: Final = 0xFFFD

SCANNER = Layout(
    position=0, code=0, expected=0, kind=0, said=0, value=0, digits=0, token=0, spaced=0, gap=0, mark=0, count=0
)
"""What is kept between tokens: tokens read; the character that is being read, and how many of its bytes are missing;
the unit that is being read, as in `UNIT`, and how many digits it has; whether white space was last; the last sign if
nothing came since; and how many units were written."""


@kernel
def scan(
    tokens: Integers,
    start: int,
    data: Integers,
    starts: Integers,
    classes: Integers,
    folded: Integers,
    scanners: Records,
    units: Records,
) -> int:
    """Reads tokens from `start` on, until they end or there is no room for more units.

    Returns:
        The index after the last token read. `count` says how many units were written.
    """
    scanner = scanners[0]
    scanner.count = 0
    for index in range(start, len(tokens)):
        token = tokens[index]
        if 0 <= token < len(starts) - 1:
            limit = scanner.count + _UNITS_OF_TOKEN
            for place in range(starts[token], starts[token + 1]):
                if scanner.count >= limit:
                    break
                _read_byte(data[place], classes, folded, scanner, units)
        scanner.position += 1
        if scanner.count >= _PAUSE:
            return index + 1
    return len(tokens)


@kernel
def flush(scanners: Records, units: Records) -> int:
    """Ends the unit that is being read, since nothing follows. Returns how many units were written."""
    scanner = scanners[0]
    scanner.count = 0
    _end_unit(scanner, units)
    return int(scanner.count)


@kernel
def _read_byte(byte: int, classes: Integers, folded: Integers, scanner: Record, units: Records) -> None:
    """UTF-8: a byte below 0x80 is a character, one from 0xC0 on begins one of two to four bytes."""
    if byte < 0x80:  # noqa: PLR2004
        if scanner.expected:
            _read_character(_REPLACEMENT, classes, folded, scanner, units)
        scanner.expected = 0
        _read_character(byte, classes, folded, scanner, units)
    elif byte >= 0xC0:  # noqa: PLR2004
        scanner.expected = 1 if byte < 0xE0 else 2 if byte < 0xF0 else 3  # noqa: PLR2004
        scanner.code = byte & (0x3F >> scanner.expected)
    elif scanner.expected:
        scanner.code = scanner.code << 6 | byte & 0x3F
        scanner.expected -= 1
        if scanner.expected == 0:
            _read_character(scanner.code, classes, folded, scanner, units)


@kernel
def _read_character(code: int, classes: Integers, folded: Integers, scanner: Record, units: Records) -> None:
    known = 0 <= code < CHARACTERS
    kind = classes[code] if known else WHOLE
    if kind == LETTER:
        _go_on(WORD, folded[code], scanner, units)
    elif kind == DIGIT:
        _go_on(NUMBER, folded[code], scanner, units)
        scanner.digits += 1
        scanner.value = scanner.value * 10 + folded[code] - 48 if scanner.digits <= _DIGITS else -1
    else:
        _end_unit(scanner, units)
        if kind == WHOLE:
            _write(WORD, code + 1, 0, scanner.position, scanner.gap, scanner, units)
        elif kind == LINE_END:
            _write(BREAK, 0, 0, scanner.position, scanner.gap, scanner, units)
        elif kind == SIGN and (scanner.gap or code != scanner.mark):
            _write(MARK, code, 0, scanner.position, scanner.gap, scanner, units)
        scanner.mark = code if kind == SIGN else 0
        scanner.gap = 1 if kind in (SPACE, LINE_END) else 0


@kernel
def _go_on(kind: int, code: int, scanner: Record, units: Records) -> None:
    """Goes on with a word or a number, or begins one."""
    if scanner.kind != kind:
        _end_unit(scanner, units)
        scanner.kind = kind
        scanner.said = 0
        scanner.value = 0
        scanner.digits = 0
        scanner.token = scanner.position
        scanner.spaced = scanner.gap
    scanner.said = (scanner.said * BASE + code + 1) % MODULUS
    scanner.gap = 0
    scanner.mark = 0


@kernel
def _end_unit(scanner: Record, units: Records) -> None:
    if scanner.kind:
        _write(scanner.kind, scanner.said, scanner.value, scanner.token, scanner.spaced, scanner, units)
        scanner.kind = 0


@kernel
def _write(kind: int, said: int, value: int, token: int, spaced: int, scanner: Record, units: Records) -> None:
    unit = units[scanner.count]
    unit.kind = kind
    unit.said = said
    unit.value = value
    unit.token = token
    unit.spaced = spaced
    scanner.count += 1


def word_hash(word: str) -> int:
    """The hash of one word, as the scanner makes it. A word that is one ideograph or kana is its character."""
    from vllm_surgery.loops.characters import classes, folded

    if len(word) == 1 and classes()[ord(word)] == WHOLE:
        return ord(word) + 1
    said = 0
    for character in word:
        said = (said * BASE + int(folded()[ord(character)]) + 1) % MODULUS
    return said
