# SPDX-License-Identifier: Apache-2.0
"""The class of each character: what the scanner makes words, numbers and signs of."""

from __future__ import annotations

import unicodedata
from functools import cache

import numpy as np

from vllm_surgery.loops.kernels import Integers, integers

SIGN, SPACE, LINE_END, LETTER, DIGIT, WHOLE = range(6)
"""A sign; white space; the end of a line; a letter or a mark on one; a digit; and what is a word by itself: an
ideograph, a kana, a picture."""

CHARACTERS = 0x20000
"""Characters in the table: two planes. Those above are ideographs and what is hardly ever used."""

_WHOLE_RANGES = (
    (0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x2600, 0x27BF), (0x1F300, 0x1FAFF),
)  # fmt: skip
_INVISIBLE = frozenset((0x200B, 0x200C, 0x200D, 0x2060, 0xFE0E, 0xFE0F, 0xFEFF))
_LINE_ENDS = frozenset("\n\r\x0b\x0c\x85\u2028\u2029")


@cache
def classes() -> Integers:
    """The class of each character."""
    return integers(np.array([_class_of(code) for code in range(CHARACTERS)], np.uint8), np.uint8)


@cache
def folded() -> Integers:
    """Each character as it is when case doesn't count; of a digit, its value as an ASCII digit."""
    return integers(np.array([_fold(code) for code in range(CHARACTERS)], np.int32), np.int32)


def _class_of(code: int) -> int:
    character = chr(code)
    if character in _LINE_ENDS:
        return LINE_END
    if any(first <= code <= last for first, last in _WHOLE_RANGES):
        return WHOLE
    category = unicodedata.category(character)
    if category == "Nd":
        return DIGIT
    if category[0] in "LMN" or code in _INVISIBLE:
        return LETTER
    return SPACE if category[0] == "Z" or character == "\t" else SIGN


def _fold(code: int) -> int:
    value = unicodedata.decimal(chr(code), None)
    if value is not None:
        return ord("0") + int(value)
    lower = chr(code).lower()
    return ord(lower) if len(lower) == 1 else code
