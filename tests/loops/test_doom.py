# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: RUF001  (Signs of other scripts.)
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
    assert "doom" not in loops_of("The sum must be even, and it is below twenty. " * 24)


CIRCLES = {
    "German": ("Moment, ich zähle noch einmal. Es sind drei. ", "Nein, eigentlich sind es zwei. ", "Warte, nochmal: drei. "),
    "Chinese": ("等等，我再检查一下。答案是三。", "不对，应该是四。", "让我重新考虑一下，是三吗？"),
    "Spanish": ("Espera, lo compruebo otra vez. Es tres. ", "No, en realidad son cuatro. ", "A ver, otra vez: tres. "),
    "French": ("Attends, je vérifie. C'est trois. ", "Non, en fait c'est quatre. ", "Un instant, peut-être trois. "),
    "Japanese": ("待って、もう一度確認します。答えは三です。", "いや、実は四です。", "でも、三かもしれません。"),
}  # fmt: skip


@pytest.mark.parametrize("turns", CIRCLES.values(), ids=CIRCLES)
def test_circles_in_other_languages(turns: tuple[str, ...]) -> None:
    random = Random(1)

    assert loops_of("".join(random.choice(turns) for _ in range(60)))["doom"].outcome == "terminal"


def test_a_plan_in_another_order_each_time_is_a_circle() -> None:
    random = Random(1)
    steps = [
        "First I will read the tests. ", "Then I need to run the build. ", "After that I look at the log again. ",
        "The log should come before the build. ", "I have to make sure that the tests are right. ",
    ]  # fmt: skip
    said = [step for _ in range(14) for step in random.sample(steps, len(steps))]

    assert "doom" in loops_of("Let me plan. " + "".join(said))


FORWARD = {
    "each checked once": [f"Wait, is {a}{b} right? Let me check. Yes, it is fine. " for a in "bcdf" for b in ("owl", "elk", "asp", "eel")],
    "sums": [f"Hmm, {a} times {b}: {a * b}. Wait, check: {a * b}/{b}={a}. Good. " for a in (13, 47, 71) for b in range(21, 31)],
    "cases": [f"Let me try k = {n}. Actually, k = {n} gives {n * n + n}. No. " for n in range(30)],
    "No. 7": [f"No. {n}: {chr(96 + n % 26)}owl. No. {n} is done. " for n in range(1, 40)],
}  # fmt: skip


@pytest.mark.parametrize("sentences", FORWARD.values(), ids=FORWARD)
def test_checking_that_goes_forward_is_no_circle(sentences: list[str]) -> None:
    assert "doom" not in loops_of("".join(sentences))
