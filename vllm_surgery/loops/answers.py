# SPDX-License-Identifier: Apache-2.0
"""Answers to look through, with their tokens."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_surgery.errors import UsageError
from vllm_surgery.loops.tokenizers import load_tokenizer
from vllm_surgery.loops.tokens import TokenTable

if TYPE_CHECKING:
    from vllm_surgery.loops.loop import Ending

_WHOLE = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"\n|[^\S\n]*(?:[{_WHOLE}]|[^\W\d_{_WHOLE}]+|\d|[^\w\s]|_)|[^\S\n]+")
"""What text is cut into without a tokenizer: words and signs with the space before them, ideographs and kana, digits,
ends of lines."""


@dataclass(frozen=True)
class Answer:
    """One answer to look through.

    Attributes:
        line: where it stands in its file, from 1.
        tokens: its token ids.
        table: what they are as text; None: unknown.
        text: the whole text; None if only its tokens are known.
        offsets: the character at which each token begins; empty without text.
        ending: how it ended.
        part: which part of a reply it is, where the reply has several: `answer`, `reasoning`, `choice 2`.
    """

    line: int
    tokens: tuple[int, ...]
    table: TokenTable | None
    text: str | None = None
    offsets: tuple[int, ...] = ()
    ending: Ending = "unknown"
    part: str | None = None


def of_tokens(token_ids: tuple[int, ...], number: int = 1, folder: str | None = None) -> Answer:
    """An answer whose tokens are known; their text too, if the folder of their tokenizer is."""
    return Answer(number, token_ids, _load(folder)[1] if folder is not None else None)


def of_text(text: str, number: int = 1, folder: str | None = None) -> Answer:
    """An answer whose text is known, cut by the tokenizer of a folder, or into words."""
    if folder is None:
        return of_words(text, number)
    tokenizer, table = _load(folder)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    offsets = tuple(start for start, _ in encoded["offset_mapping"])
    return Answer(number, tuple(encoded["input_ids"]), table, text, offsets)


def of_words(text: str, number: int = 1) -> Answer:
    """A text whose tokens are its words and signs, for want of a tokenizer."""
    ids: dict[str, int] = {}
    found = [(ids.setdefault(match[0], len(ids)), match.start()) for match in _WORD.finditer(text)]
    tokens = tuple(token for token, _ in found)
    return Answer(number, tokens, TokenTable(list(ids)), text, tuple(start for _, start in found))


@lru_cache(maxsize=4)
def _load(folder: str) -> tuple[Any, TokenTable]:
    if not Path(folder).is_dir():
        raise UsageError(f"{folder}: no such tokenizer folder")
    tokenizer = load_tokenizer(folder, local=True)
    if not tokenizer.is_fast:  # Only these say which characters a token stands for.
        raise UsageError(f"{folder}: a tokenizer without tokenizer.json")
    return tokenizer, TokenTable.from_tokenizer(tokenizer)
