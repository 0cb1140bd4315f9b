# SPDX-License-Identifier: Apache-2.0
"""Time that rankings may take, and what they leave out when it is up."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Item = TypeVar("Item")

LEAST = 3
"""Transcripts of each sort that are looked into however long that takes: with fewer a mean is one answer's."""


class Allowance:
    """A time from now on.

    Args:
        seconds: how long.
        told: is called with each item that is begun.

    Attributes:
        cut: what was left out, in words.
    """

    def __init__(self, seconds: float = math.inf, told: Callable[[str], None] | None = None) -> None:
        self._end = time.monotonic() + seconds
        self._told = told
        self.cut: list[str] = []

    def rest(self, told: Callable[[str], None] | None = None) -> Allowance:
        """What is left of it, as an allowance of its own."""
        return Allowance(self._end - time.monotonic(), told)

    def within(self, items: Sequence[Item], what: str, share: float = 1.0) -> Iterator[Item]:
        """The items, until `share` of the time that is left is up, `LEAST` of them in any case.

        Args:
            items: in the order in which they are worth it.
            what: they are, in the plural.
            share: of the time.
        """
        started = time.monotonic()
        end = started + share * max(0.0, self._end - started)
        for number, item in enumerate(items):
            if number >= LEAST and time.monotonic() >= end:
                self.cut.append(f"{number} of {len(items)} {what} were looked into: the time for rankings was up")
                return
            if self._told is not None:
                self._told(f"{what}, {number + 1} of {len(items)}")
            yield item
