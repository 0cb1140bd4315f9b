# SPDX-License-Identifier: Apache-2.0
"""Collapses: few words or signs in no order, to the end of the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.corpora.healthy.words import ADJECTIVES, NOUNS, VERBS, name, paragraph, sentence
from tests.corpora.loops.text_loop import Kind, TextLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

_PAIRS = (
    ("a", "-a"), (" ha", " ho"), ("na", " na"), (" the", " of"), ("我", "的"), ("是", "不"), ("😀", "🎉"), (" la", "-la"),
    ("и", " и"), ("ال", " و"), (" I", " am"), ("\n", "the "), (" _", "x"), (" x", " y"), ("oh ", "no "), ("A", "B "),
)  # fmt: skip
_KINDS: tuple[Kind, ...] = ("collapse", "verbatim")
_CHINESE = "的一是不了人我在有他这中大来上个国到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可她里后"


def _before(random: Random) -> str:
    return random.choice((paragraph(random) + "\n\n", sentence(random) + " ", ""))


def two_symbols(random: Random) -> TextLoop:
    """Two signs or words, mixed."""
    one, other = random.choice(_PAIRS)
    share = random.uniform(0.3, 0.7)
    loop = "".join(one if random.random() < share else other for _ in range(random.randrange(450, 900)))
    return TextLoop(_KINDS, _before(random), loop)


def _words(random: Random, count: int) -> list[str]:
    """So many words, of this and that kind."""
    pool: Sequence[str] = random.choice(
        (NOUNS, VERBS, ADJECTIVES, (*NOUNS, *VERBS, *ADJECTIVES), [name(random) for _ in range(count)], list(_CHINESE))
    )
    return list(dict.fromkeys(random.sample(list(pool), min(count, len(pool)))))


def dozen_shuffled(random: Random) -> TextLoop:
    """Three to thirteen words in no order, with or without signs between them."""
    words = _words(random, random.randrange(3, 14))
    separator = "" if words[0] in _CHINESE else random.choice((" ", " ", ", ", "\n", " - "))
    loop = separator.join(random.choice(words) for _ in range(random.randrange(350, 900)))
    return TextLoop(("collapse", "decay"), _before(random), loop)


def one_word_mostly(random: Random) -> TextLoop:
    """One word four times in five or more, others now and then, sometimes grown together."""
    word = random.choice((random.choice(NOUNS), "items", name(random), "and", "the", "的", "не", "data"))
    glue = "" if word == "的" else " "
    few = [f"{word}The", "its", "the", f"{word}{glue}{word}s", random.choice(VERBS)][: random.randrange(2, 6)]
    share = random.uniform(0.8, 0.95)
    loop = glue.join(word if random.random() < share else random.choice(few) for _ in range(random.randrange(400, 800)))
    return TextLoop(_KINDS, _before(random), loop)


def noisy_cycle(random: Random) -> TextLoop:
    """Two to four words in turn, with two to five in a hundred wrong."""
    words = _words(random, random.randrange(2, 5))
    glue = "" if words[0] in _CHINESE else " "
    noise = random.uniform(0.02, 0.05)
    said = [random.choice(words) if random.random() < noise else words[place % len(words)] for place in range(900)]
    return TextLoop((*_KINDS, "decay"), _before(random), glue.join(said[: random.randrange(450, 900)]))


def few_and_far(random: Random) -> TextLoop:
    """A few words in no order, and one in twenty from anywhere."""
    words = _words(random, random.randrange(2, 8))
    glue = "" if words[0] in _CHINESE else " "
    pool = (*NOUNS, *VERBS)
    loop = glue.join(
        random.choice(pool) if random.random() < 0.05 else random.choice(words)
        for _ in range(random.randrange(450, 900))
    )
    return TextLoop(_KINDS, _before(random), loop)


FAMILIES: dict[str, tuple[int, Callable[[Random], TextLoop]]] = {
    "collapse:two-symbols": (60, two_symbols),
    "collapse:dozen": (60, dozen_shuffled),
    "collapse:one-word": (60, one_word_mostly),
    "collapse:noisy-cycle": (60, noisy_cycle),
    "collapse:few": (60, few_and_far),
}
