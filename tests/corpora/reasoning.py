# SPDX-License-Identifier: Apache-2.0
"""Reasoning that corrects itself: once or twice and then answers, or in circles without an answer.

Both are templates of ours. The demo model doesn't reason at length, so what is measured on them says how the detector
treats text of this form, not how often real models write it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.corpora.healthy.words import NOUNS, PEOPLE, VERBS, name

if TYPE_CHECKING:
    from random import Random

OPENERS = (
    "Wait, ", "Wait. ", "Actually, ", "Hmm, ", "Hmm. ", "No, ", "But wait, ", "Hold on, ", "Let me re-check. ",
    "Let me reconsider. ", "Let me think again. ", "Alternatively, ", "Oh, ", "Wait, no. ",
)  # fmt: skip
_DOUBTS = (
    "that can't be right, because {x}.",
    "I think it is {c}, since {x}.",
    "maybe the answer is {c}.",
    "maybe {c} is wrong.",
    "{x}, so it should be {c}.",
    "what if {x}? Then it would be {c}.",
    "I said {d} before, but {x}, so it is {c}.",
    "is it {c} or {d}? {x_}.",
    "the question says that {x}, which gives {c}.",
    "earlier I had {d}. That was a mistake; it must be {c}.",
    "that contradicts {d}.",
    "if it is {c}, then {x}.",
)


@dataclass(frozen=True)
class Problem:
    """What is reasoned about: a question, facts, and answers that come into question."""

    question: str
    facts: tuple[str, ...]
    candidates: tuple[str, ...]


def problem(random: Random) -> Problem:
    """An invented problem of one of five kinds."""
    one, other = random.sample(PEOPLE, 2)
    a, b = random.randrange(3, 40), random.randrange(3, 40)
    made = [name(random) for _ in range(4)]
    noun, second = random.sample(NOUNS, 2)
    return random.choice(
        (
            Problem(
                f"{one} has {a} {noun}s and buys {b} more. How many are there?",
                (f"{one} starts with {a}", f"{b} are bought", f"none of the {noun}s are lost", "the total counts both"),
                (str(a + b), str(a + b + 1), str(abs(a - b)), str(a * b)),
            ),
            Problem(
                f"Which creature is number {a} in the index?",
                (f"{made[0]} comes after {made[1]}", f"number {a - 1} is {made[2]}", "the order is by habitat", f"{made[3]} is from another region"),
                tuple(made),
            ),
            Problem(
                f"Who owns the {noun}, {one} or {other}?",
                (f"{one} {random.choice(VERBS)} the {noun}", f"{other} lives beside the {second}", f"the {second} is not for sale", "only one of them can be right"),
                (one, other, f"neither {one} nor {other}"),
            ),
            Problem(
                f"What does the function `{noun}_{second}` return for {a}?",
                ("the loop starts at zero", f"the list has {b} items", "the last index is excluded", "an empty input gives None"),
                (f"`{a}`", f"`{a - 1}`", "`None`", f"`{b}`"),
            ),
            Problem(
                f"On which day of the week is the {noun} repaired?",
                ("the first of the month is a Monday", f"it takes {a} days", "Sundays don't count", f"the {second} is ready before"),
                ("Tuesday", "Wednesday", "Friday"),
            ),
        )
    )  # fmt: skip


def _turn(random: Random, of: Problem, opener: str) -> str:
    c, d = random.sample(of.candidates, 2)
    x = random.choice(of.facts)
    said = random.choice(_DOUBTS).format(c=c, d=d, x=x, x_=x[0].upper() + x[1:])
    return opener + (said if opener.rstrip().endswith(",") else said[0].upper() + said[1:])


def circle(random: Random, turns: int) -> tuple[str, str]:
    """The beginning of an answer and the circle of self-corrections in which it ends.

    Some circles use one opener all the time and a line a turn, some use all and no lines.
    """
    of = problem(random)
    openers = random.sample(OPENERS, random.choice((1, 2, 4, 8)))
    separator = random.choice(("\n\n", "\n", " "))
    start = random.choice(("<think>\n", "")) + _beginning(random, of)
    return start, separator.join(_turn(random, of, random.choice(openers)) for _ in range(turns))


def _beginning(random: Random, of: Problem) -> str:
    facts = " ".join(f"{random.choice(('We know that', 'Note that', 'First,'))} {fact}." for fact in of.facts)
    return f"The question is: {of.question} {facts}\n\nSo the answer is {of.candidates[0]}.\n\n"


def healthy_reasoning(random: Random) -> str:
    """Reasoning that goes on: steps, a correction or two, a check, an answer. Some of it is long.

    A few passages check every part of a problem with the same words, which is thorough and not a circle.
    """
    if random.random() < 0.25:
        return _thorough(random)
    parts = []
    for _ in range(random.choice((1, 1, 2, 3, 5))):
        of = problem(random)
        parts.append(_beginning(random, of).strip())
        parts += [_turn(random, of, random.choice(OPENERS)) for _ in range(random.choice((0, 1, 1, 2)))]
        parts.append(f"So {random.choice(of.facts)}, and the answer is {random.choice(of.candidates)}.")
    text = random.choice(("\n\n", " ")).join(parts)
    return f"<think>\n{text}\n</think>\n\n**Answer:** {of.candidates[0]}" if random.random() < 0.4 else text


def _thorough(random: Random) -> str:
    people = random.sample(PEOPLE, random.randrange(5, 12))
    opener = random.choice(("Let me check", "Now let me verify", "Next, check"))
    lines = [
        f"{opener} {one}: the {random.choice(NOUNS)} weighs {random.randrange(9, 90)} kg, which is {random.choice(('below', 'above'))} the limit. {random.choice(('Good.', 'That matches.', 'Correct.'))}"
        for one in people
    ]
    return "\n".join([*lines, "", f"All {len(people)} are checked, so the result stands."])
