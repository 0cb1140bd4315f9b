# SPDX-License-Identifier: Apache-2.0
"""A/B on the same traffic: requests under a patch beside those without one, where each request has its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploy.monitoring.panels import query, sized, table, timeseries
from deploy.monitoring.queries import LOOPS, REQUESTS, difference, newcombe, ratio, still_needed, total, wilson
from deploy.monitoring.rows.chosen import FLEET, RANGE, WINDOW

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deploy.monitoring.files import Data
    from deploy.monitoring.queries import Counted

CONTROL = "none"
"""The arm that the others are held against."""


def panels() -> Iterator[Data]:
    """The verdict on each patch, and how it came about."""
    yield sized(_verdicts(), 24, 7)
    yield timeseries(
        "Loop rate of each arm",
        "Answers of the same servers at the same time, by the patch that each request chose or was given.",
        [query(ratio(*_counted("patch", WINDOW)), "{{patch}}")],
        "percentunit",
    )
    yield timeseries(
        "Difference to requests without a patch",
        "Loop rate of a patch less that without one, with its 95 % interval. Below zero the patch helps.",
        [
            query(difference(_arm(WINDOW), _control(WINDOW)), "{{patch}}"),
            query(newcombe(_arm(WINDOW), _control(WINDOW), "lower"), "{{patch}}, lower"),
            query(newcombe(_arm(WINDOW), _control(WINDOW), "upper"), "{{patch}}, upper"),
        ],
        "percentunit",
    )


def _verdicts() -> Data:
    arm, control = _arm(RANGE), _control(RANGE)
    columns = [
        ("Answers", arm[1], "short"),
        ("Loop rate", ratio(*arm), "percentunit"),
        ("Lower", wilson(*arm, "lower"), "percentunit"),
        ("Upper", wilson(*arm, "upper"), "percentunit"),
        ("Difference", difference(arm, control), "percentunit"),
        ("Difference, lower", newcombe(arm, control, "lower"), "percentunit"),
        ("Difference, upper", newcombe(arm, control, "upper"), "percentunit"),
        ("Answers still needed", still_needed(arm, control), "short"),
    ]
    return table(
        "Patches against no patch",
        "For all of the time that is shown. Differences are to requests without a patch, with 95 % intervals "
        "(Newcombe); an interval without zero is a verdict. Answers still needed: for a verdict on a difference as "
        "large as the one seen, four times out of five.",
        {"patch": "Patch"},
        columns,
    )


def _counted(by: str, window: str, matchers: str = FLEET) -> Counted:
    return (
        total("increase", f"{LOOPS}{{{matchers}}}", window, by),
        total("increase", f"{REQUESTS}{{{matchers}}}", window, by),
    )


def _arm(window: str) -> Counted:
    return _counted("patch", window, f'{FLEET}, patch!="{CONTROL}"')


def _control(window: str) -> Counted:
    return _counted("", window, f'{FLEET}, patch="{CONTROL}"')
