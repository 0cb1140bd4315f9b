# SPDX-License-Identifier: Apache-2.0
"""Units: indices, ranges, and finding one that is named twice."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_surgery.patch.units import (
    ALL,
    MASK,
    MAX_INDEX,
    Assignment,
    Gain,
    IndexRange,
    Indices,
    covers,
    find_clash,
    merge_ranges,
    op_of,
)

ranges = st.tuples(st.integers(0, 60), st.integers(0, 8)).map(lambda pair: IndexRange(pair[0], pair[0] + pair[1]))


def assignment(indices: Indices, place: str = "", kind: str = "neurons", layer: int = 0) -> Assignment:
    return Assignment(kind, layer, indices, 0.0, "p", place)  # type: ignore[arg-type]


def members(spans: list[IndexRange]) -> list[int]:
    return [index for span in spans for index in span]


@pytest.mark.parametrize(
    ("value", "first", "last"),
    [(0, 0, 0), (7, 7, 7), (MAX_INDEX, MAX_INDEX, MAX_INDEX), ("100-199", 100, 199), ("3-3", 3, 3)],
)
def test_an_index_or_a_range_is_read(value: object, first: int, last: int) -> None:
    assert IndexRange.parse(value) == IndexRange(first, last)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (-1, "index -1 is negative"),
        (MAX_INDEX + 1, "index 1048576 is beyond the largest that a patch may name, 1048575"),
        ("0-1048576", "index 1048576 is beyond the largest that a patch may name, 1048575"),
        ("5-4", "the range 5-4 runs backwards"),
        ([1, 5], 'a range is written "1-5", got [1, 5]'),
        ([1, True], 'expected an index such as 7 or a range such as "100-199", got [1, True]'),
        *(
            (value, f'expected an index such as 7 or a range such as "100-199", got {value!r}')
            for value in [
                True, None, 1.0, "7", "1-", "-1", "1-2-3", "01-2", "1-02", " 1-2", "1-2\n", "1 - 2", "٣-٤", "all", [1], {}, "",
                "0-" + "9" * 20,
            ]
        ),
    ],
)  # fmt: skip
def test_anything_else_is_refused(value: object, reason: str) -> None:
    with pytest.raises(ValueError, match=r"\S") as caught:
        IndexRange.parse(value)

    assert str(caught.value) == reason


@given(ranges)
def test_a_range_written_reads_back_the_same(span: IndexRange) -> None:
    assert IndexRange.parse(span.written()) == span


@given(st.lists(ranges, max_size=6))
def test_merging_keeps_the_indices_or_finds_one_that_stands_twice(spans: list[IndexRange]) -> None:
    indices = members(spans)
    if len(set(indices)) < len(indices):
        with pytest.raises(ValueError, match=r"index [0-9]+ is named twice"):
            merge_ranges(spans)
        return

    merged = merge_ranges(spans)

    assert members(list(merged)) == sorted(indices)
    assert all(late.first > early.last + 1 for early, late in itertools.pairwise(merged))


@given(st.sets(st.integers(0, 60)), st.integers(-1, 70))
def test_covers_agrees_with_looking_at_each_index(indices: set[int], index: int) -> None:
    spans = merge_ranges(IndexRange(number, number) for number in indices)

    assert covers(spans, index) == (index in indices)


@given(st.lists(st.tuples(st.integers(0, 1), st.lists(ranges, min_size=1, max_size=3)), max_size=5))
def test_a_clash_is_found_exactly_where_a_unit_stands_twice(named: list[tuple[int, list[IndexRange]]]) -> None:
    items = [assignment(tuple(spans), layer=layer) for layer, spans in named]
    units = [(layer, index) for layer, spans in named for index in members(spans)]

    clash = find_clash(items)

    assert (clash is None) == (len(set(units)) == len(units))
    if clash is not None:
        assert units.count((clash.first.layer, clash.index)) > 1


@pytest.mark.parametrize(
    ("first", "second", "index"),
    [
        (ALL, ALL, 0),
        (ALL, (IndexRange(545, 545),), 545),
        ((IndexRange(545, 545),), ALL, 545),
        ((IndexRange(0, 9),), (IndexRange(9, 12),), 9),
        ((IndexRange(0, 99),), (IndexRange(50, 50),), 50),
    ],
)  # fmt: skip
def test_a_clash_names_the_unit_and_both_places(first: Indices, second: Indices, index: int) -> None:
    clash = find_clash([assignment(first, "a"), assignment(second, "b")])

    assert clash is not None
    assert (clash.index, clash.first.place, clash.second.place) == (index, "a", "b")


def test_a_neuron_and_an_expert_of_one_number_do_not_clash() -> None:
    spans = (IndexRange(3, 3),)

    assert find_clash([assignment(spans), assignment(spans, kind="experts"), assignment(spans, layer=1)]) is None


def test_a_whole_layer_is_resolved_by_its_width() -> None:
    assert list(assignment(ALL).resolve(3)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        (-1.0, {"op": "negate"}),
        (0.0, {"op": "zero"}),
        (-0.8, {"op": "scale", "factor": -0.8}),
        (MASK, {"op": "mask"}),
    ],
)
def test_each_gain_has_its_op(gain: Gain, said: dict[str, object]) -> None:
    assert op_of(gain) == said
