# SPDX-License-Identifier: Apache-2.0
"""The text of each token of a tokenizer."""

from __future__ import annotations

import re
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE_MARK = "\u2581"  # SentencePiece's space.
_BYTE_SPACE, _BYTE_NEWLINE = "\u0120", "\u010a"  # A space and a line's end in the alphabet of byte-level BPE.


def pieces_of(tokenizer: Any) -> list[str]:
    """The text of each token, leading space included, by id; empty for special tokens.

    A token that holds a part of a character only has U+FFFD in it.
    """
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    special = set(getattr(tokenizer, "all_special_ids", ()))
    read = _reader(tokens)
    return ["" if index in special or token is None else read(token) for index, token in enumerate(tokens)]


def _reader(tokens: list[Any]) -> Any:
    known = set(filter(None, tokens))
    return _from_bytes if {_BYTE_SPACE, _BYTE_NEWLINE} & known else _from_sentence_piece


def _from_sentence_piece(token: str | bytes) -> str:
    if isinstance(token, bytes):
        return token.decode("utf-8", errors="replace")
    if found := _BYTE.fullmatch(token):
        return bytes([int(found[1], 16)]).decode("utf-8", errors="replace")
    return token.replace(_SPACE_MARK, " ")


def _from_bytes(token: str) -> str:
    """The text of a token in the alphabet of byte-level BPE; of one that isn't, such as an added token, as it is."""
    try:
        return bytes([_BYTE_OF[character] for character in token]).decode("utf-8", errors="replace")
    except KeyError:
        return token


def _byte_alphabet() -> dict[str, int]:
    """The characters that stand for bytes: printable ones for themselves, the others from U+0100 on, in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(0x100) if byte not in printable)
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + place): byte for place, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
