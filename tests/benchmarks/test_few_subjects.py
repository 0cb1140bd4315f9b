# SPDX-License-Identifier: Apache-2.0
"""The least number of subjects is one at which chance is seldom called a help, and fewer would be too few."""

from __future__ import annotations

import pytest

from tests.benchmarks.few_subjects import ASKED, false_alarms
from vllm_surgery.evaluation.analysis.verdict import MIN_SUBJECTS

TRIALS = 1000


@pytest.mark.parametrize("asked", ASKED)
def test_chance_is_seldom_called_a_help_from_the_least_number_of_subjects_on(asked: str) -> None:
    assert false_alarms(ASKED[asked], MIN_SUBJECTS, TRIALS) <= 0.04 * TRIALS  # 2.5 %, and what so few trials vary by.


def test_one_subject_would_be_called_a_help_by_chance() -> None:
    assert false_alarms(ASKED["eight, each arm moves each subject"], 1, TRIALS) > 0.15 * TRIALS
