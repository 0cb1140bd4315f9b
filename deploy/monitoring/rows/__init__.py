# SPDX-License-Identifier: Apache-2.0
"""What the dashboard shows: a row for each question that an operator asks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploy.monitoring.panels import row
from deploy.monitoring.rows import cost, effect, health, looping, rescue, trial

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deploy.monitoring.files import Data


def all_panels() -> Iterator[Data]:
    """Every panel, in the order in which they stand."""
    for question, panels in (
        ("Is it looping?", looping.panels()),
        ("Did the surgery work?", effect.panels()),
        ("A/B on the same traffic", trial.panels()),
        ("Are answers rescued?", rescue.panels()),
        ("What does it cost?", cost.panels()),
        ("Health", health.panels()),
    ):
        yield row(question)
        yield from panels
