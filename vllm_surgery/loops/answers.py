# SPDX-License-Identifier: Apache-2.0
"""Answers to look through, from a file."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_surgery.errors import UsageError
from vllm_surgery.loops.tokenizers import load_tokenizer
from vllm_surgery.loops.tokens import TokenTable

if TYPE_CHECKING:
    from collections.abc import Iterator

_WORD = re.compile(r"\n|[^\S\n]*(?:[^\W\d_]+|\d|[^\w\s]|_)|[^\S\n]+")
"""What text is cut into without a tokenizer: words and signs with the space before them, digits, ends of lines."""

_MAX_ID = 2**31 - 1


@dataclass(frozen=True)
class Answer:
    """One answer to look through.

    Attributes:
        line: where it stands in its file, from 1.
        tokens: its token ids.
        table: what they are as text; None: unknown.
        text: the whole text; None if only its tokens are known.
        offsets: the character at which each token begins; empty without text.
    """

    line: int
    tokens: tuple[int, ...]
    table: TokenTable | None
    text: str | None = None
    offsets: tuple[int, ...] = ()


def read_answers(content: str, source: str, tokenizer: str | None = None) -> Iterator[Answer]:
    """The answers in a file: one in each line that isn't empty if the first is a JSON object, else the whole is one.

    Args:
        content: of the file.
        source: its name, for errors.
        tokenizer: folder of the tokenizer that made token ids, and that cuts text; an answer may name its own.

    Raises:
        UsageError: a line isn't what it should be, or there is no such tokenizer.
    """
    lines = [(number, line) for number, line in enumerate(content.splitlines(), start=1) if line.strip()]
    if not lines or not lines[0][1].lstrip().startswith("{") or _as_object(lines[0][1]) is None:
        if lines:
            yield _of_text(content, 1, tokenizer)
        return
    for number, line in lines:
        yield _of_record(line, number, f"{source}:{number}", tokenizer)


def _as_object(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _of_record(line: str, number: int, place: str, tokenizer: str | None) -> Answer:
    record = _as_object(line)
    if record is None:
        raise UsageError(f"{place}: not a JSON object")
    folder = record.get("tokenizer", tokenizer)
    if not (folder is None or isinstance(folder, str)):
        raise UsageError(f"{place}: tokenizer: not the name of a folder")
    if "token_ids" in record:
        return _of_tokens(record["token_ids"], number, place, folder)
    if isinstance(record.get("text"), str):
        return _of_text(record["text"], number, folder)
    raise UsageError(f'{place}: neither "text" nor "token_ids"')


def _of_tokens(token_ids: Any, number: int, place: str, folder: str | None) -> Answer:
    if not isinstance(token_ids, list) or not all(type(token) is int and 0 <= token <= _MAX_ID for token in token_ids):
        raise UsageError(f"{place}: token_ids: not a list of token ids")
    return Answer(number, tuple(token_ids), _load(folder)[1] if folder is not None else None)


def _of_text(text: str, number: int, folder: str | None) -> Answer:
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
