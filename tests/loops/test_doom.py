# SPDX-License-Identifier: Apache-2.0
"""Doom loops: self-correction in circles, and self-correction that makes headway."""

from __future__ import annotations

from random import Random

import pytest

from tests.loops.words import loops_of, start_of

CIRCLE = (
    "Wait, maybe it is seventeen, since that is prime and below twenty. ",
    "Hmm, but nineteen is prime too, and it is below twenty. ",
    "No, that can't be right, because the sum must be even. ",
    "But wait, if it is seventeen then the sum is odd again. ",
    "Let me check again. The sum must be even, so it is not nineteen. ",
    "Actually, the question says that the sum must be even. ",
)
BEGINNING = "The question asks for a number. I look at the primes first, one after another. "
ANSWER = (
    "So the pairs with an even sum are those of two odd numbers. " + "Each of them is listed in the table below. " * 2
)


def circling(turns: int, seed: int = 1) -> str:
    random = Random(seed)
    return "".join(random.choice(CIRCLE) for _ in range(turns))


def headway(turns: int) -> str:
    random = Random(2)
    letters = "abcdefghijklmnopqrstuvwxyz"
    word = lambda: "".join(random.choice(letters) for _ in range(6))  # noqa: E731
    return "".join(f"Wait, {' '.join(word() for _ in range(14))}. " for _ in range(turns))


@pytest.mark.parametrize("seed", range(5))
def test_a_circle_is_found_from_its_first_round_on(seed: int) -> None:
    text = BEGINNING + circling(40, seed)
    loop = loops_of(text)["doom"]
    assert loop.outcome == "terminal"
    assert start_of(text, loop).strip() == text[len(BEGINNING) :].strip()


def test_a_circle_that_is_left_is_escaped() -> None:
    text = BEGINNING + circling(40) + " ".join(f"Then comes step {number}, which is easy." for number in range(60))
    assert loops_of(text)["doom"].outcome == "escaped"


def test_reasoning_that_makes_headway_is_not_a_circle() -> None:
    assert "doom" not in loops_of(headway(60))


def test_a_few_corrections_are_not_a_circle() -> None:
    assert "doom" not in loops_of(BEGINNING + circling(5) + ANSWER)


def test_repetition_without_a_cue_is_not_doom() -> None:
    assert "doom" not in loops_of("The sum must be even, and it is below twenty. " * 60)
