# SPDX-License-Identifier: Apache-2.0
"""What an edit has in common with a patch: neurons, and the direction of their gains."""

from __future__ import annotations

from typing import Any

from tests.benchmarks.shared_units import edits_of_search, gains_of, most_like, row, sets_of_ranking
from vllm_surgery import Patch
from vllm_surgery.patch.units import Unit

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


WIDTHS = dict.fromkeys(range(5), 8)
ONE, TWO, FOUR, FIVE = (Unit("neurons", *place) for place in ((0, 1), (0, 2), (3, 4), (3, 5)))
WHOLE = [Unit("neurons", 4, index) for index in range(8)]


def test_gains_of_neurons_alone_and_of_whole_layers() -> None:
    assert gains_of(PATCH, WIDTHS) == {ONE: 2.0, TWO: 2.0, FOUR: 2.0, FIVE: -1.0, **dict.fromkeys(WHOLE, -1.0)}


def test_edits_of_experts_are_left_out() -> None:
    found = edits_of_search(searched([["neurons", 0, 1, 5.0]], [["neurons", 0, 1, 5.0], ["experts", 0, 1, 0.0]]))
    assert found == [{ONE: 5.0}]


def test_what_is_in_both_and_what_chance_would_give() -> None:
    edit = {ONE: 1.5, TWO: 0.5, FOUR: 3.0, Unit("neurons", 7, 7): 3.0}
    patch = {ONE: 2.0, TWO: 2.0, FOUR: 2.0, FIVE: -1.0}
    assert row("one", edit, patch, neurons=16) == ["one", "4", "3", "1.00", "0.03", "2 of 3"]


def test_sets_of_a_search_and_of_its_ranking_alone() -> None:
    ranking = {"sets": [{"gains": [["neurons", 0, 1, 5.0]]}, {"gains": [["experts", 0, 1, 0.0]]}]}
    assert sets_of_ranking(ranking) == sets_of_ranking({"attribution": ranking, "measured": []}) == [{ONE: 5.0}]


def test_the_set_that_is_most_like_another() -> None:
    large = {ONE: 1.0, TWO: 1.0, FOUR: 1.0, FIVE: 1.0}
    assert most_like({ONE: 5.0}, [large, {ONE: 1.0}, {FOUR: 1.0}]) == {ONE: 1.0}
    assert most_like({ONE: 5.0, TWO: 5.0, FOUR: 5.0}, [large, {ONE: 1.0}]) is large
