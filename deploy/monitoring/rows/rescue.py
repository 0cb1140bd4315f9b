# SPDX-License-Identifier: Apache-2.0
"""What do rescues do? Loops that clients saw beside those that the model had, and what became of each rescue."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploy.monitoring.panels import query, timeseries
from deploy.monitoring.queries import LOOPS, REQUESTS, ratio
from deploy.monitoring.rows.chosen import CHOSEN, COUNTS_TWICE, increase_of, loop_rate, rate_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deploy.monitoring.files import Data

_RESCUES, _TOKENS = "vllm_surgery_rescues_total", "vllm_surgery_rescued_tokens_total"
_SEEN = f'{CHOSEN}, outcome!="taken_back"'


def panels() -> Iterator[Data]:
    """Rates side by side, and rescues by action and outcome."""
    yield timeseries(
        "Loop rate, as clients saw it and as the model had it",
        f"Between the two are loops that were taken back before their client saw them. {COUNTS_TWICE}",
        [
            query(ratio(increase_of(LOOPS, matchers=_SEEN), increase_of(REQUESTS)), "seen by clients"),
            query(loop_rate(), "of the model"),
        ],
        "percentunit",
        colors={"seen by clients": "red", "of the model": "blue"},
    )
    yield timeseries(
        "Rescues by action",
        "In the length of time that rates are taken over.",
        [query(increase_of(_RESCUES, "action"), "{{action}}")],
        "short",
        stacked=True,
    )
    yield timeseries(
        "Rescues by outcome",
        "ended: the answer came to an end of its own, or was stopped. looped_again: it looped once more. cut: its "
        "budget or its client ended it, in no loop.",
        [query(increase_of(_RESCUES, "outcome"), "{{outcome}}")],
        "short",
        stacked=True,
        colors={"ended": "green", "looped_again": "red", "cut": "yellow"},
    )
    yield timeseries(
        "Tokens that rescues saved or took back",
        "Each second. Under stop: what was left of the budgets. Under the others: tokens made and taken back.",
        [query(rate_of(_TOKENS, "action"), "{{action}}")],
        "short",
        stacked=True,
    )
