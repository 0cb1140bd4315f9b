# SPDX-License-Identifier: Apache-2.0
"""Two simple rules that say whether a finished answer ended in a loop. For the evidence of a patch, not for serving.

Both look at the end of an answer only, and both ask for the same thing: that what stands there stood there
`MIN_COPIES` times. They don't look at how the answer ended; that is reported beside them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

Outcome: TypeAlias = Literal["verbatim", "decay", "none"]
OUTCOMES: tuple[Outcome, ...] = ("verbatim", "decay", "none")

MIN_COPIES = 4
"""Healthy text says a thing three times in a row for effect ("no, no, no") or in a refrain; four times is rare."""

MIN_TOKENS = 32
"""An eighth of the budget of 256. Below it lie the rules of tables and rows of dots, periodic for a few tokens only."""

MIN_ENTRIES = 8
"""Two answers, `MIN_COPIES` times each. Healthy lists have this many entries, but not with two answers."""

MIN_WORDS = 32
"""In place of `MIN_ENTRIES` for entries that are whole sentences: as much text as `MIN_TOKENS` asks for. A first run
judged by entries alone and overlooked a list of one dog in five long entries, since eight didn't fit in the budget."""

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
_INLINE_MARKER = re.compile(r"(?:^|(?<=\s))(?:[(\[]\d+[)\]]|\d+[.)])(?=\s|$)")
_TRAILING_COUNTER = re.compile(r"\s*[(\[#]\s*\d+\s*[)\]]?\s*$")
_LEADING_AND = re.compile(r"^(?:and|or)\s+", re.IGNORECASE)
_DECORATION = re.compile(r"[*_`\"'\u2018\u2019\u201c\u201d.,;:!?]+")


def outcome(tokens: Sequence[int], text: str, complete: bool) -> Outcome:
    """How an answer ended.

    Args:
        tokens: the answer's tokens, without the one that ends it.
        text: the same as text.
        complete: whether the model ended it itself. If not, its last entry may be cut and isn't judged.
    """
    if is_verbatim(tokens):
        return "verbatim"
    return "decay" if is_decay(text, complete) else "none"


def is_verbatim(tokens: Sequence[int]) -> bool:
    """Whether the answer ends in at least `MIN_COPIES` copies of a block, back to back, over `MIN_TOKENS` or more.

    The last copy may be cut, and copies are counted in tokens, so three and a half are not four.
    """
    return any(_is_periodic(tokens, period) for period in range(1, len(tokens) // MIN_COPIES + 1))


def _is_periodic(tokens: Sequence[int], period: int) -> bool:
    covered = max(MIN_TOKENS, MIN_COPIES * period)
    if covered > len(tokens):
        return False
    start = len(tokens) - covered
    return all(tokens[place] == tokens[place + period] for place in range(start, len(tokens) - period))


def is_decay(text: str, complete: bool) -> bool:
    """Whether the list at the end has collapsed onto few answers while its numbering or markers went on.

    That is: among the last n entries, for some n of at least `MIN_ENTRIES` (or fewer that have `MIN_WORDS` words), each
    answer stands `MIN_COPIES` times on average, so at most two answers in eight entries, four in sixteen; and the last
    one is among those that recur.
    """
    return _has_collapsed(_judged(text, complete))


def has_left_a_loop(tokens: Sequence[int], text: str, complete: bool) -> bool:
    """Whether an answer whose `outcome` is "none" was in a loop earlier: by either rule, had it been cut there."""
    answers = _judged(text, complete)
    return any(_has_collapsed(answers[:end]) for end in range(len(answers))) or any(
        is_verbatim(tokens[:end]) for end in range(len(tokens))
    )


def _judged(text: str, complete: bool) -> list[str]:
    answers = entries(text)
    return answers if complete else answers[:-1]


def _has_collapsed(answers: Sequence[str]) -> bool:
    if not answers or answers.count(answers[-1]) < MIN_COPIES:
        return False
    seen: set[str] = set()
    words = 0
    for count, answer in enumerate(reversed(answers), start=1):
        seen.add(answer)
        words += len(answer.split())
        if count >= MIN_COPIES * len(seen) and (count >= MIN_ENTRIES or words >= MIN_WORDS):
            return True
    return False


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
