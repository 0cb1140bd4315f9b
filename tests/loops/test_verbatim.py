# SPDX-License-Identifier: Apache-2.0
"""Verbatim loops: the exact onset, the primitive period, and what is too little to be a loop."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vllm_surgery.loops import MAX_PERIOD, Loop, Thresholds, detect

LEVELS = Thresholds()


def fresh(random: Random, length: int) -> list[int]:
    """Tokens of which none comes twice."""
    return random.sample(range(1_000, 60_000), length)


def only(loops: tuple[Loop, ...]) -> Loop:
    (loop,) = loops
    return loop


def primitive_period(tokens: list[int]) -> int:
    return next(period for period in range(1, len(tokens) + 1) if tokens[period:] == tokens[:-period])


def onset_by_hand(tokens: list[int], end: int, period: int) -> int:
    place = end - period
    while place > 0 and tokens[place - 1] == tokens[place - 1 + period]:
        place -= 1
    return place


@pytest.mark.parametrize("period", [1, 2, 3, 7, 8, 9, 64, 95, 96, 500, 1023, MAX_PERIOD])
def test_any_period_up_to_the_longest(period: int) -> None:
    random = Random(period)
    start, motif = fresh(random, 50), [token + 60_000 for token in fresh(random, period)]
    tokens = start + motif * (500 // period + 5)
    loop = only(detect(tokens))
    assert (loop.onset, loop.period, loop.end, loop.outcome) == (50, period, len(tokens), "terminal")
    assert loop.copies == (len(tokens) - 50) / period
    assert set(loop.motif) <= set(motif)


@given(seed=st.integers(0, 10**6), symbols=st.sampled_from([2, 3, 5, 5_000]), period=st.integers(1, MAX_PERIOD))
def test_onset_and_period_are_those_found_by_hand(seed: int, symbols: int, period: int) -> None:
    random = Random(seed)
    motif = [random.randrange(symbols) for _ in range(period)]
    period = primitive_period(motif * 3)
    tokens = fresh(random, random.randrange(100)) + motif[:period] * (400 // period + 4)
    end = len(tokens)
    tokens += [70_000, *fresh(random, 99)]
    loop = only(detect(tokens))
    assert (loop.onset, loop.period, loop.end) == (onset_by_hand(tokens, end, period), period, end)
    assert loop.outcome == "escaped"


@given(seed=st.integers(0, 10**6), inner=st.integers(2, 30), times=st.integers(2, 12), rest=st.integers(1, 200))
def test_a_phrase_repeated_within_the_period_is_not_the_period(seed: int, inner: int, times: int, rest: int) -> None:
    assume(inner * times < LEVELS.tokens)  # Else it is a loop of its own.
    random = Random(seed)
    phrase = fresh(random, inner)
    motif = phrase * times + [token + 60_000 for token in fresh(random, rest)]
    loop = only(detect(motif * (400 // len(motif) + 4)))
    assert (loop.onset, loop.period) == (0, len(motif))


def test_below_the_floor_of_copies_nothing_is_a_loop() -> None:
    motif = fresh(Random(1), 40)
    assert detect(motif * LEVELS.copies)
    assert not detect((motif * LEVELS.copies)[:-1])


def test_below_the_floor_of_tokens_nothing_is_a_loop() -> None:
    motif = fresh(Random(1), 12)
    tokens = motif * 20
    assert detect(tokens[: LEVELS.tokens])
    assert not detect(tokens[: LEVELS.tokens - 1])


def test_few_different_tokens_need_more_of_them() -> None:
    row = [1, *[2, 3] * 9, 2, 4]  # "[0, 0, 0]," and the end of the line.
    tokens = row * 40
    assert detect(tokens[: LEVELS.poor_tokens])
    assert not detect(tokens[: LEVELS.poor_tokens - 1])


def test_a_loop_that_is_left_and_another() -> None:
    random = Random(2)
    first, second = fresh(random, 30), [token + 60_000 for token in fresh(random, 20)]
    found = detect(first * 5 + [3] + second * 8)
    assert [(loop.onset, loop.period, loop.end, loop.outcome) for loop in found] == [
        (0, 30, 150, "escaped"),
        (151, 20, 311, "terminal"),
    ]


def test_the_token_that_ends_an_answer_leaves_no_loop() -> None:
    tokens = fresh(Random(3), 30) * 5
    assert only(detect([*tokens, 0])).outcome == "terminal"
    assert only(detect([*tokens, 0, 9])).outcome == "escaped"


def test_of_many_loops_the_first_and_the_latest_are_kept() -> None:
    random = Random(4)
    motifs = [[token + 60_000 * index for token in fresh(random, 20)] for index in range(30)]
    found = detect([token for motif in motifs for token in motif * 6])
    assert [loop.onset for loop in found] == [*range(0, 7 * 120, 120), 29 * 120]


@given(tokens=st.lists(st.integers(0, 50_000), unique=True, max_size=2_000))
def test_tokens_that_never_recur_are_no_loop(tokens: list[int]) -> None:
    assert not detect(tokens)
