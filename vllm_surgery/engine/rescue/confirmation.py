# SPDX-License-Identifier: Apache-2.0
"""Confirmation: when a loop that the detectors report is taken as certain enough to change an answer for it.

Counting a loop that isn't one costs a number on a dashboard; acting on it costs somebody their answer. So a loop has to
go on for longer than its detector asks, and then to stand up to a second reading of the whole answer, as if it ended by
itself right there: rows of a pattern and encoded data, which look like loops on the way, don't.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from vllm_surgery.loops import Kind, Loop

TOKENS: Mapping[Kind, int] = {"verbatim": 192, "decay": 128, "collapse": 256, "doom": 1024}
"""How long a loop has gone on, in tokens since its onset, before anything is done about it."""

AT_THE_END: Mapping[Kind, int] = {"verbatim": 96, "decay": 64, "collapse": 128, "doom": 512}
"""The same for an answer whose budget ends in the loop: that speaks for one, and later there is nothing left to do."""

TAIL = 96
"""So many last tokens of an answer that is about to end are looked at first."""

_FEW = 24
"""Different ones among them, from which on an answer isn't read a second time unless a loop is known."""

_LATER = 1.25
"""An answer that didn't stand up to a second reading is read again when it has grown by this factor."""


def lasting(
    loops: Iterable[Loop], kinds: Collection[Kind], tokens: int, since: int, least: Mapping[Kind, int]
) -> list[Loop]:
    """The loops that have gone on for long enough, the one that began first before the others.

    Args:
        loops: as the detectors report them.
        kinds: those about which something is to be done.
        tokens: how many the answer has.
        since: how many it had when it was last rescued. What was begun there gets the same time to leave the loop.
        least: `TOKENS` or `AT_THE_END`.
    """
    found = [loop for loop in loops if loop.kind in kinds and loop.outcome != "escaped" and not _may_be_labels(loop)]
    return sorted(
        (loop for loop in found if tokens - max(loop.onset, since) >= least[loop.kind]), key=lambda loop: loop.onset
    )


def _may_be_labels(loop: Loop) -> bool:
    """True for a list of few answers that is a loop only because its budget ended in it. So are classified tickets."""
    return loop.kind == "decay" and loop.evidence == "ending"


def seems_poor(token_ids: Sequence[int]) -> bool:
    """True for an answer whose last tokens are few different ones, so that it is worth a second reading at its end."""
    tail = token_ids[-TAIL:]
    return len(tail) == TAIL and len({*tail}) <= _FEW


def read_again_at(tokens: int) -> int:
    """The length from which on an answer is read again that has not stood up to a second reading now."""
    return int(tokens * _LATER) + 1
