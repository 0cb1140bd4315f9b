# SPDX-License-Identifier: Apache-2.0
"""Confirmation: when a loop that the detectors report is taken as certain enough to change an answer for it.

Counting a loop that isn't one costs a number on a dashboard; acting on it costs somebody their answer. So a loop has to
go on for longer than its detector asks, and to be going on still.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vllm_surgery.loops import Kind, Loop

TOKENS: Mapping[Kind, int] = {"verbatim": 192, "decay": 128, "collapse": 256, "doom": 1024}
"""How long a loop has gone on, in tokens since its onset, before anything is done about it."""

AT_THE_END: Mapping[Kind, int] = {"verbatim": 96, "decay": 64, "collapse": 128, "doom": 512}
"""The same for an answer whose budget ends in the loop: that speaks for one, and later there is nothing left to do."""


def confirmed(running: Iterable[Loop], tokens: int, since: int = 0, least: Mapping[Kind, int] = TOKENS) -> Loop | None:
    """The loop that is certain, of those that an answer is in; of several the one that began first.

    Args:
        running: as the detectors reported them.
        tokens: how many the answer has.
        since: how many it had when it was last rescued. What was begun there gets the same time to leave the loop.
        least: `TOKENS` or `AT_THE_END`.
    """
    certain = (loop for loop in running if tokens - max(loop.onset, since) >= least[loop.kind])
    return min(certain, key=lambda loop: loop.onset, default=None)
