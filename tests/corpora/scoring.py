# SPDX-License-Identifier: Apache-2.0
"""Whether what the watcher finds is what is planted, or what a reader sees."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.corpora.labels import Finding
    from tests.corpora.planted import Planted
    from vllm_surgery.loops import Loop


def found_planted(loop: Planted, found: Iterable[Loop]) -> list[Loop]:
    """The planted loop as it was found: of its kind or of another that it may be called, in its place, and of its exact period where it
    has one.

    Several if it was found in pieces.
    """
    return [
        one
        for one in found
        if one.kind in (loop.kind, *loop.also)
        and one.onset < loop.end
        and one.end > loop.onset
        and (loop.period in (None, one.period) or one.kind != loop.kind)
    ]


def found_real(finding: Finding, found: Iterable[Loop]) -> Loop | None:
    """The loop of the labelled kind whose onset is nearest to what the reader says."""
    same = [one for one in found if one.kind == finding.kind]
    return min(same, key=lambda one: abs(finding.error(one.onset)), default=None)


def agrees(expected: str, loop: Loop) -> bool:
    """Whether the outcome is as labelled."""
    return expected in ("either", loop.outcome)
