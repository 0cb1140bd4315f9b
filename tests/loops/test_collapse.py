# SPDX-License-Identifier: Apache-2.0
"""Collapses: few words in no order; and healthy text that has few words too."""

from __future__ import annotations

from random import Random

import pytest

from tests.loops.words import loops_of, start_of

BEFORE = "Here is what you asked for, in the order of the source: "
DOZEN = [
    "river",
    "bridge",
    "lantern",
    "garden",
    "window",
    "market",
    "letter",
    "harbour",
    "kettle",
    "ladder",
    "basket",
    "mirror",
]


def shuffled(words: list[str], count: int = 400, seed: int = 1, separator: str = " ") -> str:
    random = Random(seed)
    return separator.join(random.choice(words) for _ in range(count))


@pytest.mark.parametrize("separator", [" ", "\n", " - "])
@pytest.mark.parametrize("words", [DOZEN[:2], DOZEN[:5], DOZEN], ids=["two", "five", "twelve"])
def test_few_words_in_no_order_are_a_collapse(words: list[str], separator: str) -> None:
    found = loops_of(BEFORE + shuffled(words, separator=separator))

    assert {"collapse", "decay"} & set(found)


def test_it_begins_with_its_words_and_lasts_to_the_end() -> None:
    text = BEFORE + shuffled(DOZEN)
    loop = loops_of(text)["collapse"]

    assert loop.outcome == "terminal"
    assert abs(len(start_of(text, loop)) - len(shuffled(DOZEN))) < 200


def test_two_signs_in_no_order_are_one() -> None:
    random = Random(2)
    assert "collapse" in loops_of("a" + "".join(random.choice((" a", "-a")) for _ in range(500)))


def test_one_word_nearly_always_is_one() -> None:
    random = Random(3)
    words = (random.choice(("items",) * 6 + ("the", "itemsThe")) for _ in range(500))
    assert "collapse" in loops_of(" ".join(words))


def test_one_that_is_left_is_escaped() -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    random = Random(4)
    after = " ".join("".join(random.choice(letters) for _ in range(5)) for _ in range(300))
    assert loops_of(shuffled(DOZEN) + ". " + after)["collapse"].outcome == "escaped"


def test_what_is_periodic_is_a_verbatim_loop_and_no_collapse() -> None:
    assert set(loops_of("left right " * 400)) == {"verbatim"}


HEALTHY = {
    "a template": "".join(f"Let me check {a}{b}. Yes, that one works well. " for a in "bcdfghjk" for b in ("owl", "elk", "asp", "eel", "ant")),
    "a table of answers": "".join(f"| {a}{b} | yes | no | n/a | yes |\n" for a in "bcdfghjk" for b in "aeiou"),
    "digits": "0 1 1 0 1 0 0 1 " * 8 + " ".join("01"[n * n % 7 % 2] for n in range(300)),
    "JSON": "".join(f'{{"kind": "cat", "age": {n % 9}, "good": true}},\n' for n in range(60)),
}  # fmt: skip


@pytest.mark.parametrize("text", HEALTHY.values(), ids=HEALTHY)
def test_healthy_text_does_not_collapse(text: str) -> None:
    assert "collapse" not in loops_of(text)
