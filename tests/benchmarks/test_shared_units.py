# SPDX-License-Identifier: Apache-2.0
"""What an edit has in common with a patch: neurons, and the direction of their gains."""

from __future__ import annotations

from typing import Any

from tests.benchmarks.shared_units import edits_of_search, gains_of_patch, row
from vllm_surgery import Patch

PATCH = Patch.from_data(
    {
        "version": 1,
        "name": "mine",
        "model": {},
        "edits": [
            {"op": "scale", "factor": 2.0, "neurons": {"0": ["1-2"], "3": [4]}},
            {"op": "negate", "neurons": {"3": [5], "4": "all"}},
            {"op": "scale", "factor": 0.5, "experts": {"0": [1]}},
        ],
    },
    "mine",
)


def searched(*gains: list[Any]) -> dict[str, Any]:
    return {"measured": [{"candidate": {"gains": [list(each) for each in one]}} for one in gains]}


def test_gains_are_of_neurons_that_are_named() -> None:
    assert gains_of_patch(PATCH) == {(0, 1): 2.0, (0, 2): 2.0, (3, 4): 2.0, (3, 5): -1.0}


def test_edits_of_experts_are_left_out() -> None:
    found = edits_of_search(searched([["neurons", 0, 1, 5.0]], [["neurons", 0, 1, 5.0], ["experts", 0, 1, 0.0]]))
    assert found == [{(0, 1): 5.0}]


def test_what_is_in_both_and_what_chance_would_give() -> None:
    edit = {(0, 1): 1.5, (0, 2): 0.5, (3, 4): 3.0, (7, 7): 3.0}
    assert row("one", edit, gains_of_patch(PATCH), neurons=16) == ["one", "4", "3", "1.00", "0.03", "2 of 3"]
