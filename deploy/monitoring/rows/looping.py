# SPDX-License-Identifier: Apache-2.0
"""Is it looping? Now and over time, by kind, patch and outcome."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploy.monitoring.panels import KIND_COLORS, query, stat, timeseries
from deploy.monitoring.queries import LOOPS, REQUESTS, ratio
from deploy.monitoring.rows.chosen import (
    COUNTS_TWICE,
    FLEET,
    RANGE,
    increase_of,
    loop_rate,
    looped_share,
    value_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deploy.monitoring.files import Data

_LOOPING = "vllm_surgery_looping_requests"
_ACTIVE = f'count(count by (patch) (vllm_surgery_patch_info{{{FLEET}, state="active"}} == 1))'


def panels() -> Iterator[Data]:
    """Six numbers, four lines."""
    yield from _numbers()
    yield timeseries(
        "Loop rate by kind",
        "verbatim: the same tokens again and again. decay: a list's entries collapse onto a few. collapse: few words "
        "in no order. doom: self-correction in circles.",
        [query(_share_of_answers("kind"), "{{kind}}")],
        "percentunit",
        colors=KIND_COLORS,
    )
    yield timeseries(
        "Loop rate by patch",
        f"A loop belongs to the patch under which it began, an answer to the one that ended it. {COUNTS_TWICE}",
        [query(loop_rate("patch"), "{{patch}}")],
        "percentunit",
    )
    yield timeseries(
        "Loop rate by outcome",
        "terminal: to the answer's end. escaped: the model left the loop by itself. taken_back: a rescue took it out "
        "of the answer before its client saw it.",
        [query(_share_of_answers("outcome"), "{{outcome}}")],
        "percentunit",
        colors={"terminal": "red", "escaped": "green", "taken_back": "blue"},
    )
    yield timeseries(
        "Requests in a loop",
        "At this moment.",
        [query(value_of(_LOOPING, "kind"), "{{kind}}")],
        "short",
        colors=KIND_COLORS,
    )


def _numbers() -> Iterator[Data]:
    yield stat("Loop rate", f"Loops for each answer. {COUNTS_TWICE}", loop_rate(window=RANGE), "percentunit")
    yield stat("Answers", "That ended in this time.", increase_of(REQUESTS, window=RANGE), "short")
    yield stat("Loops", "In those answers.", increase_of(LOOPS, window=RANGE), "short")
    yield stat("Output in loops", "Share of all tokens.", looped_share(window=RANGE), "percentunit")
    yield stat("In a loop now", "Requests; one in two kinds of loop counts twice.", value_of(_LOOPING), "short")
    yield stat("Patches active now", "More than one: a canary, or a swap under way. `none` counts.", _ACTIVE, "short")


def _share_of_answers(loops_by: str) -> str:
    return ratio(increase_of(LOOPS, loops_by), increase_of(REQUESTS), "on () group_left ()")
