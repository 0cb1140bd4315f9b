# SPDX-License-Identifier: Apache-2.0
"""Tables for the reports, and how they say a figure that was taken several times."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return ["| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows]]


def spread(values: Sequence[float], form: str) -> str:
    """Median, and from the least to the most, each formatted by `form`."""
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def put_between(text: str, begin: str, end: str, report: str) -> str:
    """A text with a report between two of its lines, in the place of the one that is there."""
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n\n{report}\n{end}{rest.partition(end)[2]}"
