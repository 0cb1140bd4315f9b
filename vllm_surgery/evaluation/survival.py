# SPDX-License-Identifier: Apache-2.0
"""How long answers last until they loop: the Kaplan-Meier curve (Kaplan and Meier 1958)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def survival(answers: Iterable[tuple[int, bool]]) -> list[tuple[int, float]]:
    """The share of answers not yet in a loop, from each token on at which it falls.

    An answer that ends without a loop says nothing of what would have come after, so it leaves the count where it ends.

    Args:
        answers: for each its first loop's onset and True, or its length and False.

    Returns:
        Steps of the curve, from ``(0, 1.0)`` on.
    """
    known = sorted(answers)
    steps, share, left = [(0, 1.0)], 1.0, len(known)
    for token in sorted({length for length, _ in known}):
        here = [looped for length, looped in known if length == token]
        if any(here):
            share *= 1 - sum(here) / left
            steps.append((token, share))
        left -= len(here)
    return steps
