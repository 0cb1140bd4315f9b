# SPDX-License-Identifier: Apache-2.0
"""Texts with a loop, by family. None is stored: each is generated from a seed.

`tests.corpora.planted` plants loops into tokens of healthy text; these are whole answers as text, in the dresses in
which people report loops: lists as JSON, tables and links, cycles of many answers, blocks with a counter, collapses,
circles of reasoning in six languages.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from tests.corpora.loops import circles, collapses, dressed_lists, repeats
from tests.corpora.loops.text_loop import TextLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SEED = "loops 1"

FAMILIES: dict[str, tuple[int, Callable[[Random], TextLoop]]] = {
    **dressed_lists.FAMILIES,
    **repeats.FAMILIES,
    **collapses.FAMILIES,
    **circles.FAMILIES,
}
"""How many, and what makes one."""


def text_loops() -> Iterator[tuple[str, str, TextLoop]]:
    """All of them, each with its id and its family."""
    for family, (count, make) in FAMILIES.items():
        for number in range(count):
            yield f"{family}/{number:04d}", family, make(Random(f"{SEED} {family} {number}"))


__all__ = ["FAMILIES", "TextLoop", "text_loops"]
