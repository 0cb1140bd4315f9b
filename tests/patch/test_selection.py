# SPDX-License-Identifier: Apache-2.0
"""Selections: layers with their indices, sorted and merged, whatever their spelling."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from vllm_surgery.patch.selection import parse_selection, write_selection
from vllm_surgery.patch.units import ALL, IndexRange

index_sets = st.dictionaries(st.integers(0, 20).map(str), st.sets(st.integers(0, 50), min_size=1), min_size=1)


@pytest.mark.parametrize(
    ("value", "selection"),
    [
        ({"29": [545]}, {29: (IndexRange(545, 545),)}),
        ({29: [545]}, {29: (IndexRange(545, 545),)}),
        ({"0": [5, 3, 4]}, {0: (IndexRange(3, 5),)}),
        ({"0": ["0-9", 11, "10-10"]}, {0: (IndexRange(0, 11),)}),
        ({"0": [1, 3]}, {0: (IndexRange(1, 1), IndexRange(3, 3))}),
        ({"9999": ALL}, {9999: ALL}),
        ({"10": [1], "9": [1]}, {9: (IndexRange(1, 1),), 10: (IndexRange(1, 1),)}),
    ],
)
def test_a_selection_is_read_sorted_and_merged(value: object, selection: object) -> None:
    assert parse_selection(value) == selection


def test_layers_stand_in_order_of_their_numbers() -> None:
    assert list(parse_selection({"10": [1], "9": [1], "100": [1]})) == [9, 10, 100]


@pytest.mark.parametrize(
    ("value", "place", "reason"),
    [
        ({}, "", "names no units; give at least one layer with an index"),
        ([], "", "expected layers with their indices, such as {29: [545]}, got []"),
        (None, "", "expected layers with their indices, such as {29: [545]}, got None"),
        ("all", "", "expected layers with their indices, such as {29: [545]}, got 'all'"),
        ({"0": []}, "0", "names no units; give at least one index"),
        ({"0": None}, "0", 'expected a list of indices or the word "all", got None'),
        ({"0": 5}, "0", 'expected a list of indices or the word "all", got 5'),
        ({"0": "5"}, "0", 'expected a list of indices or the word "all", got \'5\''),
        ({"0": "All"}, "0", 'expected a list of indices or the word "all", got \'All\''),
        ({"0": {}}, "0", 'expected a list of indices or the word "all", got {}'),
        ({"0": [1, "all"]}, "0[1]", 'expected an index such as 7 or a range such as "100-199", got \'all\''),
        ({"0": [[1]]}, "0[0]", 'expected an index such as 7 or a range such as "100-199", got [1]'),
        ({"0": [1, -1]}, "0[1]", "index -1 is negative"),
        ({"0": [5, 5]}, "0", "index 5 is named twice"),
        ({"0": ["0-9", 9]}, "0", "index 9 is named twice"),
        ({"0": [9, "0-9"]}, "0", "index 9 is named twice"),
        ({"0": ["0-9", "5-15"]}, "0", "index 5 is named twice"),
        *(
            ({key: [1]}, "", f"expected a layer number from 0 to 9999, got {key!r}")
            for key in ["-1", -1, "10000", "1.0", 1.0, "029", "+1", " 1", "1\n", "", "x", "٢", True, None, "1" * 5000]
        ),
    ],
)  # fmt: skip
def test_anything_else_is_refused_with_its_place(value: object, place: str, reason: str) -> None:
    with pytest.raises(PydanticCustomError) as caught:
        parse_selection(value)

    assert caught.value.context == {"place": place, "reason": reason}


@given(index_sets)
def test_the_order_of_layers_and_indices_does_not_matter(named: dict[str, set[int]]) -> None:
    ascending = {layer: sorted(indices) for layer, indices in named.items()}
    descending = {layer: sorted(named[layer], reverse=True) for layer in reversed(list(named))}

    assert parse_selection(ascending) == parse_selection(descending)


@given(index_sets)
def test_a_selection_written_reads_back_the_same(named: dict[str, set[int]]) -> None:
    selection = parse_selection({layer: list(indices) for layer, indices in named.items()})

    assert parse_selection(write_selection(selection)) == selection
