# SPDX-License-Identifier: Apache-2.0
"""Healthy lists whose right entries are few: keys of tests, attendance, knitting, chords, votes, training plans.

They are the hardest there are: what tells them from a loop is not in the text. How often a detector is wrong about them
is a figure of its own in the report.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.corpora.healthy.words import PEOPLE, sentence

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random


def few_answers(random: Random) -> str:
    """One of the kinds, after a sentence."""
    make = random.choice((_test_key, _true_false, _attendance, _knitting, _chords, _votes, _plan, _coin, _rhythm))
    return f"{sentence(random)}\n\n{make(random)}"


def _test_key(random: Random) -> str:
    return "\n".join(f"{place}. {random.choice('ABCD')}" for place in range(1, random.choice((11, 21, 31, 41))))


def _true_false(random: Random) -> str:
    return "\n".join(f"{place}. {random.choice(('True', 'False'))}" for place in range(1, random.randrange(8, 26)))


def _attendance(random: Random) -> str:
    people = random.sample(PEOPLE, random.randrange(8, 24))
    return "\n".join(f"- {one}: {random.choice(('present', 'present', 'present', 'absent'))}" for one in people)


def _knitting(random: Random) -> str:
    rows = range(1, random.randrange(8, 25))
    return "\n".join(f"Row {place}: {'knit' if place % 2 else 'purl'} {random.choice((40, 40, 38))}" for place in rows)


def _chords(random: Random) -> str:
    verse = " ".join(random.sample(("C", "G", "Am", "F", "Dm", "Em"), 4))
    return "\n".join(f"| {verse} |" for _ in range(random.randrange(3, 7)))


def _votes(random: Random) -> str:
    return ", ".join(random.choice(("yes", "no", "yes", "abstained")) for _ in range(random.randrange(8, 30)))


def _plan(random: Random) -> str:
    return "\n".join(
        f"Day {day}: {'rest' if day % 3 == 0 else 'run 5 km'}" for day in range(1, random.randrange(10, 31))
    )


def _coin(random: Random) -> str:
    return ", ".join(random.choice(("heads", "tails")) for _ in range(random.randrange(10, 50)))


def _rhythm(random: Random) -> str:
    return "\n".join(
        f"{place} & {random.choice(('kick', 'snare', 'hat'))}" for place in range(1, random.randrange(8, 17))
    )


CLASSES: dict[str, tuple[int, Callable[[Random], str]]] = {"few-right-answers": (180, few_answers)}
