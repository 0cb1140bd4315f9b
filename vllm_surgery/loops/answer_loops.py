# SPDX-License-Identifier: Apache-2.0
"""The loops of one answer, counted: metrics and reports count alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_surgery.loops.loop import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vllm_surgery.loops.loop import Kind, Loop


def loop_per_kind(loops: Sequence[Loop]) -> list[Loop]:
    """The loops that an answer is counted for, at most one of each kind: the one that it ended in, else the first."""
    told: list[Loop] = []
    for kind in KINDS:
        of_kind = [loop for loop in loops if loop.kind == kind]
        told += [loop for loop in of_kind if loop.outcome == "terminal"][:1] or of_kind[:1]
    return told


def merged_spans(loops: Iterable[Loop], kind: Kind) -> list[tuple[int, int]]:
    """The tokens that loops of a kind cover, as ``(first, end)``, none of them twice."""
    covered: list[tuple[int, int]] = []
    for loop in sorted((loop for loop in loops if loop.kind == kind), key=lambda loop: loop.onset):
        first = max(loop.onset, covered[-1][1]) if covered else loop.onset
        if first < loop.end:
            covered.append((first, loop.end))
    return covered
