# SPDX-License-Identifier: Apache-2.0
"""An answer counts once for each kind of loop, and a token once however many loops it is in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vllm_surgery.loops import Loop
from vllm_surgery.loops.answer_loops import loop_per_kind, merged_spans


def loop(onset: int, end: int, outcome: str = "escaped", kind: str = "verbatim") -> Loop:
    return Loop(kind, onset, 1, end - onset, end, outcome)  # type: ignore[arg-type]


def test_the_loop_that_an_answer_ends_in_counts() -> None:
    first, last = loop(0, 10), loop(20, 30, "terminal")
    assert loop_per_kind([first, last]) == [last]


def test_else_the_first_counts() -> None:
    assert loop_per_kind([loop(5, 10), loop(20, 30)]) == [loop(5, 10)]


def test_each_kind_counts_by_itself() -> None:
    assert loop_per_kind([loop(0, 9, kind="decay"), loop(3, 5)]) == [loop(3, 5), loop(0, 9, kind="decay")]


def test_no_loop_counts_for_nothing() -> None:
    assert loop_per_kind([]) == []
    assert merged_spans([], "decay") == []


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 30)), max_size=8))
def test_every_token_is_covered_once(places: list[tuple[int, int]]) -> None:
    loops = [loop(onset, onset + tokens) for onset, tokens in places]
    covered = [token for first, end in merged_spans(loops, "verbatim") for token in range(first, end)]
    assert covered == sorted({token for each in loops for token in range(each.onset, each.end)})
    assert merged_spans(loops, "decay") == []
