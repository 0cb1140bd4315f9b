# SPDX-License-Identifier: Apache-2.0
"""The bytes of each token of a tokenizer."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE_MARK = "\u2581"  # SentencePiece's space.
_BYTE_SPACE, _BYTE_NEWLINE = "\u0120", "\u010a"  # A space and a line's end in the alphabet of byte-level BPE.


def pieces_of(tokenizer: Any) -> list[bytes]:
    """The UTF-8 of each token, leading space included, by id; empty for special tokens.

    A token may hold a part of a character only.
    """
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    special = set(getattr(tokenizer, "all_special_ids", ()))
    read = _reader(tokens)
    return [b"" if index in special or token is None else read(token) for index, token in enumerate(tokens)]


def _reader(tokens: list[Any]) -> Callable[[str | bytes], bytes]:
    known = set(filter(None, tokens))
    return _from_byte_alphabet if {_BYTE_SPACE, _BYTE_NEWLINE} & known else _from_sentence_piece


def utf8(text: str | bytes) -> bytes:
    """`text` as bytes. Surrogates, which JSON may hold, are kept as they are."""
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")


def _from_sentence_piece(token: str | bytes) -> bytes:
    if isinstance(token, bytes):
        return token
    if found := _BYTE.fullmatch(token):
        return bytes([int(found[1], 16)])
    return utf8(token.replace(_SPACE_MARK, " "))


def _from_byte_alphabet(token: str | bytes) -> bytes:
    """The bytes of a token in the alphabet of byte-level BPE; of one that isn't, such as an added token, as it is."""
    try:
        return bytes([_BYTE_OF[character] for character in token])  # type: ignore[index]
    except KeyError:
        return utf8(token)


def _byte_alphabet() -> dict[str, int]:
    """The characters that stand for bytes: printable ones for themselves, the others from U+0100 on, in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(0x100) if byte not in printable)
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + place): byte for place, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
