# SPDX-License-Identifier: Apache-2.0
"""What each token of a tokenizer is as text, in the form that the detectors of lists and turns read."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from vllm_surgery.loops.compiled import Integers, integers
from vllm_surgery.loops.pieces import pieces_of

if TYPE_CHECKING:
    from collections.abc import Sequence

COLUMNS = 3
"""Integers per token: its flags, the hash of its content, and the power that appends it to another hash."""

MODULUS = (1 << 31) - 1
"""Hashes are polynomials of characters modulo this prime, so that the hash of a text doesn't depend on how it is cut
into tokens, and products stay below 2**63."""

BASE = 1_000_003
"""Above every code point that text is likely to have."""

NEWLINE, SPACE, LETTER, DIGIT, COMMA, POINT, BULLET, OPEN, CLOSE, CODE, SENTENCE, MORE, GAP = (
    1 << bit for bit in range(13)
)
"""Flags: has a line's end; begins with white space; has a letter; content is a number; has a comma or semicolon; begins
with what closes a list marker; is a bullet; is what opens a counter; begins with what closes one; has characters of
code; ends a sentence; ends in a letter or digit, so that the next token may go on with the word;
ends in white space."""

CONTENT = LETTER | DIGIT

_COMMAS = frozenset(",;\u3001\uff0c\uff1b")
_POINTS = (".", ")", ":", "]", "\u3001", "\uff0e")
_BULLETS = frozenset("-*+\u2022\u2013\u2014\u00b7")
_OPENINGS = frozenset("([#")
_CODE = frozenset('"`{}[]<>=|\\_')
_SENTENCE_END = re.compile("[.!?:\n\u3002\uff01\uff1f]")
_BROKEN = "\ufffd"  # What a token that holds a part of a character decodes to.


class TokenTable:
    """Flags and hashes of a tokenizer's tokens; made once, shared by all requests, never changed.

    Args:
        pieces: the text of each token, by its id; empty for special tokens.
    """

    def __init__(self, pieces: Sequence[str]) -> None:
        self.size = len(pieces)
        self._pieces = pieces
        rows = np.array([_row(index, piece) for index, piece in enumerate(pieces)] or [(0, 0, 1)], dtype=np.int64)
        self.columns: Integers = integers(rows.reshape(-1).astype(np.int32), np.int32)

    @classmethod
    def from_tokenizer(cls, tokenizer: Any) -> TokenTable:
        """The table of a Hugging Face tokenizer, or of any that has a length and its `convert_ids_to_tokens`."""
        return cls(pieces_of(tokenizer))

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of `token_ids`, for people. Characters that are cut between tokens are lost."""
        return "".join(self._pieces[token] for token in token_ids if 0 <= token < self.size)


def content_hash(text: str) -> int:
    """The hash of the letters and digits of `text`, in lower case."""
    return _hash([character for character in text.casefold() if character.isalnum()])[0]


def _hash(characters: Sequence[str]) -> tuple[int, int]:
    value, power = 0, 1
    for character in characters:
        value = (value * BASE + ord(character)) % MODULUS
        power = power * BASE % MODULUS
    return value, power


def _row(index: int, piece: str) -> tuple[int, int, int]:
    characters = [character for character in piece.casefold() if character.isalnum()]
    value, power = _hash(characters)
    flags = _layout(piece) | _content(characters)
    if not characters and _BROKEN in piece:
        return flags | LETTER | MORE, (index + 1) * BASE % MODULUS, BASE
    return flags, value, power


def _content(characters: Sequence[str]) -> int:
    if not characters:
        return 0
    return DIGIT if all(character.isdigit() for character in characters) else LETTER


def _layout(piece: str) -> int:
    bare = piece.strip()
    held = set(piece)
    flags = {
        NEWLINE: "\n" in piece,
        SPACE: piece[:1].isspace(),
        COMMA: bool(held & _COMMAS),
        POINT: bare.startswith(_POINTS),
        BULLET: len(bare) == 1 and bare in _BULLETS,
        OPEN: len(bare) == 1 and bare in _OPENINGS,
        CLOSE: bare.startswith((")", "]")),
        CODE: bool(held & _CODE),
        SENTENCE: _SENTENCE_END.search(piece) is not None,
        MORE: piece[-1:].isalnum(),
        GAP: piece[-1:].isspace(),
    }
    return sum(flag for flag, holds in flags.items() if holds)
