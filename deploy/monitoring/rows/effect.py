# SPDX-License-Identifier: Apache-2.0
"""Did the surgery work? Patches side by side, with intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploy.monitoring.panels import band, query, sized, table, timeseries
from deploy.monitoring.queries import LOOPS, REQUESTS, ratio, wilson
from deploy.monitoring.rows.chosen import RANGE, increase_of, rate_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deploy.monitoring.files import Data


def panels() -> Iterator[Data]:
    """A table of patches, a band for each, and what a canary needs."""
    yield sized(_patches("Patches", "For all of the time that is shown.", {"patch": "Patch"}), 24, 7)
    yield sized(_bands(), 24, 8)
    yield _patches(
        "Patches on each instance",
        "For a canary: one instance has the new patch, the others the old one.",
        {"instance": "Instance", "patch": "Patch"},
    )
    yield timeseries(
        "Answers by patch",
        "That ended, each second.",
        [query(rate_of(REQUESTS, "patch"), "{{patch}}")],
        "reqps",
        stacked=True,
    )


def _bands() -> Data:
    loops, answers = increase_of(LOOPS, "patch"), increase_of(REQUESTS, "patch")
    return band(
        "Loop rate under $patch",
        "With its 95 % interval (Wilson). Where two bands don't meet, chance doesn't explain the difference.",
        ratio(loops, answers),
        wilson(loops, answers, "lower"),
        wilson(loops, answers, "upper"),
        repeat="patch",
    )


def _patches(title: str, description: str, labels: dict[str, str]) -> Data:
    by = ", ".join(labels)
    loops, answers = increase_of(LOOPS, by, RANGE), increase_of(REQUESTS, by, RANGE)
    columns = [
        ("Answers", answers, "short"),
        ("Loops", loops, "short"),
        ("Loop rate", ratio(loops, answers), "percentunit"),
        ("Lower", wilson(loops, answers, "lower"), "percentunit"),
        ("Upper", wilson(loops, answers, "upper"), "percentunit"),
    ]
    return table(title, f"{description} Lower and upper: the ends of the 95 % interval (Wilson).", labels, columns)
