# SPDX-License-Identifier: Apache-2.0
"""The entries of a list in an answer, without what marks and decorates them. For reports; loops are found in tokens."""

from __future__ import annotations

import re
from typing import Literal, TypeAlias

Form: TypeAlias = Literal["numbered", "bulleted", "plain"]

LONG_LINE = 8
"""A line with this many commas or inline counters is a list of its own. Sentences have fewer commas."""

_MARKER = re.compile(
    r"""\s*(?:
        [-*+•\u2013\u2014·]+(?=\s|$)  # a bullet
      | [(\[]\d+[)\]][.:]?        # (3)  [3]
      | \#?\d+[.):](?=\D|$)       # 3.  3)  3:   but not 3.5
      | \d+\s*[-\u2013]\s*\d+:      # 1914-1918:
      | [A-Za-z][.):](?=\s|$)      # B.  b)  A:
      | \#\d+                     # #3
      | \d+\s+[-\u2013\u2014](?=\s|$)  # 1964 -
      | (?:No|Number|Entry|Item)\.?\s*\#?\d+[.):]?  # No. 3
    )\s*""",
    re.VERBOSE | re.IGNORECASE,
)
_NUMBERED = re.compile(r"\s*(?:[(\[]?\d+[.):\]])")
_BULLETED = re.compile(r"\s*[-*+•\u2013\u2014·](?=\s)")
_INLINE_MARKER = re.compile(r"(?:^|(?<=\s))(?:[(\[]\d+[)\]]|\d+[.)])(?=\s|$)")
_TRAILING_COUNTER = re.compile(r"\s*[(\[#]\s*\d+\s*[)\]]?\s*$")
_LEADING_AND = re.compile(r"^(?:and|or)\s+", re.IGNORECASE)
_DECORATION = re.compile(r"[*_`\"'\u2018\u2019\u201c\u201d.,;:!?]+")


def distinct_entries(text: str) -> int:
    """The number of different lines or pieces of an answer, right or wrong. An answer without a list has few."""
    return len(set(entries(text)) - {""})


def form(text: str) -> Form:
    """The form of an answer: most of its lines numbered, or bulleted, or else plain (lines, or a sentence)."""
    lines = [line for line in text.splitlines() if line.strip()]
    numbered, bulleted = (sum(marker.match(line) is not None for line in lines) for marker in (_NUMBERED, _BULLETED))
    if lines and 2 * max(numbered, bulleted) >= len(lines):
        return "numbered" if numbered >= bulleted else "bulleted"
    return "plain"


def entries(text: str) -> list[str]:
    """The answer's list entries without markers and counters, in lower case. Nothing but a counter is an empty entry.

    An entry is a line, or a piece of a line that is a list of its own. A number that is an entry's only content stays,
    and so does one within its words: they may be the answer ("2, 4, 6", "Apollo 11").
    """
    return [bare(entry) for line in text.splitlines() if line.strip() for entry in _split(line)]


def bare(entry: str) -> str:
    """`entry` without bullets, counters and decoration, in lower case, its white space folded."""
    stripped = _LEADING_AND.sub("", entry.strip())
    while (found := _MARKER.match(stripped)) and found.end():
        stripped = stripped[found.end() :]
    stripped = _TRAILING_COUNTER.sub("", stripped)
    return " ".join(_DECORATION.sub("", stripped).lower().split())


def _split(line: str) -> list[str]:
    if len(_INLINE_MARKER.findall(line)) >= LONG_LINE:
        return _INLINE_MARKER.split(line)[1:]
    pieces = [piece for piece in re.split(r"[,;]", line) if piece.strip()]
    return pieces if len(pieces) > LONG_LINE else [line]
