# SPDX-License-Identifier: Apache-2.0
"""The options of `serve` that no server is needed for."""

from __future__ import annotations

import pytest

from vllm_surgery.cli.serve import on_loop_setting
from vllm_surgery.errors import UsageError


@pytest.mark.parametrize(
    ("given", "setting"),
    [
        ([], None),
        (["observe"], "observe"),
        (["penalty:1.15,stop"], "penalty:1.15,stop"),
        (["verbatim=penalty:1.15,stop", "decay=stop"], {"verbatim": "penalty:1.15,stop", "decay": "stop"}),
    ],
)
def test_actions_on_loops_are_one_setting(given: list[str], setting: object) -> None:
    assert on_loop_setting(given) == setting


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (["stop", "decay=stop"], "--on-loop: give actions for all kinds of loop, or KIND=ACTION for each"),
        (["stop", "stop"], "--on-loop: given twice; put commas between actions that are tried in turn"),
        (["decay=stop", "decay=observe"], "--on-loop: given twice; put commas between actions that are tried in turn"),
    ],
)
def test_actions_that_are_given_in_two_ways_are_refused(given: list[str], reason: str) -> None:
    with pytest.raises(UsageError) as refused:
        on_loop_setting(given)
    assert str(refused.value) == reason
