# SPDX-License-Identifier: Apache-2.0
"""Short lists with a known right answer: whether an answer names all of it and nothing else."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vllm_surgery.evaluation.tasks.list_entries import bare, entries

_MARKED = re.compile(r"\s*(?:[-*+•]|\d+[.)])\s")
_SENTENCE_END = re.compile(r"(?<=[.!?:])\s+|\n+")
_SEPARATOR = re.compile(r"[,;]|\band\b")


@dataclass(frozen=True)
class ShortList:
    """The items that a right answer names.

    Attributes:
        items: each with the names that it goes by, lower case.
        choose: how many of the items are to be named.
        optional: names that may stand in the answer as well.
    """

    items: tuple[tuple[str, ...], ...]
    choose: int
    optional: tuple[str, ...] = ()

    def is_right(self, text: str, *, complete: bool) -> bool:
        """True if the answer ends by itself, names as many items as wanted, none twice, and nothing else.

        Where some lines are marked as entries, they are the answer, each for its head alone (before a colon or a dash).
        Else it is the first sentence that names two items or more, cut at commas and "and"; else all that name one.
        """
        named = [self._named(entry) for entry in self._entries(text)]
        known = [item for item in named if item != -1]
        return complete and None not in known and len(known) == self.choose == len(set(known))

    def named_in(self, text: str) -> set[int]:
        """The items that a long list names, by their places. Of an entry it is the one that it names first."""
        found = (self._first_named(entry) for entry in entries(text))
        return {item for item in found if item is not None}

    def _first_named(self, entry: str) -> int | None:
        """The item that stands first in a bare entry, of those that begin in one place the longest."""
        places = [
            (match.start(), -match.end(), number)
            for number, names in enumerate(self.items)
            for name in names
            if (match := re.search(rf"(?<!\w){re.escape(name)}(?!\w)", entry)) is not None
        ]
        return min(places)[2] if places else None

    def _entries(self, text: str) -> list[str]:
        marked = [line for line in text.splitlines() if _MARKED.match(line)]
        if len(marked) > 1:
            return [re.split(r":|\s[-\u2013]\s", _bare_head(line))[0] for line in marked]
        sentences = [part for part in _SENTENCE_END.split(text) if not part.rstrip().endswith(":")]
        pieces = [[piece for piece in _SEPARATOR.split(part) if bare(piece)] for part in sentences]
        several = [part for part in pieces if self._count(part) > 1]
        return several[0] if several else [piece for part in pieces if self._count(part) for piece in part]

    def _count(self, pieces: list[str]) -> int:
        return sum(self._named(piece) is not None for piece in pieces)

    def _named(self, entry: str) -> int | None:
        """The number of the item that `entry` names; -1 for an optional one, None for something else.

        A name at the entry's end comes first, since sentences lead up to it ("The days are Monday").
        """
        words = bare(entry)
        found = {number: _last_place(words, names) for number, names in enumerate((self.optional, *self.items), -1)}
        best = max(found, key=lambda number: found[number])
        return None if found[best] < 0 else best


def _bare_head(line: str) -> str:
    """`line` without its marker, colons and dashes still in it."""
    return _MARKED.sub("", line, count=1)


def _last_place(words: str, names: tuple[str, ...]) -> int:
    places = [found.end() for name in names for found in re.finditer(rf"\b{re.escape(name)}\b", words)]
    return max(places, default=-1)
