# SPDX-License-Identifier: Apache-2.0
"""Shows real answers so that a person can label them: every entry in full once, with its token, later ones by number.

    python -m tests.corpora.show --model DIR [ID ...]

It compares entries only to fold what was read already; nothing here decides what a loop is.
"""

from __future__ import annotations

import argparse
import re
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.corpora.files import read_records
from tests.corpora.make_real import ANSWERS

if TYPE_CHECKING:
    from collections.abc import Iterator

_ENTRY = re.compile(r"[^\n]+\n*")
_PIECE = re.compile(r"[^,]+,?")
_SENTENCE = re.compile(r".+?(?:[.!?](?=\s)|$)\s*", re.DOTALL)
_COUNTER = re.compile(r"^[\s\-*•(#]*\d*[.):]*\s*")
LONGEST_CYCLE = 12
LONG_LINE = 160
WIDTH = 150
MANY_COMMAS = 6


def show(record: dict[str, Any], tokenizer: Any) -> str:
    """An answer in few lines."""
    ends = list(accumulate(len(tokenizer.id_to_token(token)) for token in record["token_ids"]))
    head = f"### {record['id']} [{len(ends)} tokens, {record['finish_reason']}] {record['prompt']}"
    return head + "\n" + " ".join(_fold(list(_numbered(record["text"], ends))))


def _numbered(text: str, ends: list[int]) -> Iterator[tuple[str, int, str]]:
    """Each entry as a number, the token it begins with, and what to show for it."""
    seen: dict[str, int] = {}
    for start, entry in _entries(text):
        token = bisect_right(ends, len(text[:start].encode()))
        bare = _bare(entry)
        if bare in seen:
            yield f"={seen[bare]}", token, f"={seen[bare]}"
        else:
            seen[bare] = len(seen)
            yield f"={seen[bare]}", token, f"\n  @{token} <{seen[bare]}> {_shortened(entry.strip())}"


def _bare(entry: str) -> str:
    """An entry without its marker, figures in it masked if it has words; so lists that only count are folded too."""
    bare = _COUNTER.sub("", entry).strip(" ,.\n").lower()
    return re.sub(r"\d+", "0", bare) if re.search("[^\\W\\d]", bare) else bare


def _shortened(entry: str) -> str:
    return entry if len(entry) <= 2 * WIDTH else f"{entry[:WIDTH]} [...] {entry[-WIDTH:]}"


def _entries(text: str) -> Iterator[tuple[int, str]]:
    for line in _ENTRY.finditer(text):
        if line.group().count(",") >= MANY_COMMAS:
            yield from ((line.start() + piece.start(), piece.group()) for piece in _PIECE.finditer(line.group()))
        elif len(line.group()) > LONG_LINE:
            yield from ((line.start() + part.start(), part.group()) for part in _SENTENCE.finditer(line.group()))
        else:
            yield line.start(), line.group()


def _fold(entries: list[tuple[str, int, str]]) -> Iterator[str]:
    """What to show, with copies of up to `LONGEST_CYCLE` entries folded."""
    at = 0
    while at < len(entries):
        cycle, copies = max(
            ((length, _copies(entries, at, length)) for length in range(1, LONGEST_CYCLE + 1)),
            key=lambda found: found[0] * (found[1] - 1),
        )
        if copies < 3:
            yield entries[at][2]
            at += 1
        else:
            yield f"@{entries[at][1]}({' '.join(shown for _, _, shown in entries[at : at + cycle])})x{copies}"
            at += cycle * copies


def _copies(entries: list[tuple[str, int, str]], at: int, length: int) -> int:
    keys = [key for key, _, _ in entries]
    copies = 1
    while keys[at : at + length] == keys[at + copies * length : at + (copies + 1) * length]:
        copies += 1
    return copies


def main() -> None:
    from tokenizers import Tokenizer

    parser = argparse.ArgumentParser(prog="python -m tests.corpora.show", description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of the demo model")
    parser.add_argument("ids", nargs="*", help="answers (default: all)")
    arguments = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(arguments.model / "tokenizer.json"))
    for record in read_records(ANSWERS):
        if not arguments.ids or record["id"] in arguments.ids:
            print(show(record, tokenizer), end="\n\n")


if __name__ == "__main__":
    main()
