# SPDX-License-Identifier: Apache-2.0
"""Lists of labels: batch classification, answers to many closed questions, grades. A common job, and not a loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.corpora.healthy.words import name, sentence

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

_CLASSES = (
    ("spam", "not spam"), ("spam", "ham"), ("yes", "no"), ("Yes", "No", "Unclear"), ("positive", "negative", "neutral"),
    ("Positive", "Negative", "Neutral", "Mixed"), ("billing", "technical", "account", "shipping", "other"),
    ("bug", "feature request", "question"), ("relevant", "not relevant"), ("true", "false"), ("high", "medium", "low"),
    ("P1", "P2", "P3", "P4"), ("toxic", "safe"), ("fraud", "legitimate"), ("entailment", "neutral", "contradiction"),
    ("sports", "politics", "business", "technology", "health", "culture"), ("pass", "fail"), ("agree", "disagree"),
    ("in stock", "sold out", "on order"), ("PERSON", "ORG", "LOC", "O"), ("A", "B", "C", "D"), ("match", "no match"),
    ("refund", "complaint", "praise", "order status", "other"), ("left", "right"), ("cat", "dog"), ("approved", "rejected"),
)  # fmt: skip

_FRAMES = (
    "{n}. {x}", "{n}. {x}", "{n}: {x}", "{n}) {x}", "Item {n}: {x}", "Ticket {n}: {x}", "Ticket #{n} - {x}", "- {n}: {x}",
    "Review {n}: {x}", "Email {n} - {x}", "{n},{x}", '{{"id": {n}, "label": "{x}"}}', "| {n} | {x} |", "Q{n}: {x}",
    '  {{"id": {n}, "class": "{x}"}},', "{n}. **{x}**", '"{n}": "{x}",', "Text {n} → {x}", "[{n}] {x}", "row {n} = {x}",
)  # fmt: skip


def labels(random: Random) -> str:
    """One label for each of ten to a hundred items, some classes more often than others."""
    classes = random.choice(_CLASSES)
    weights = [random.uniform(0.1, 1) ** random.choice((1, 2)) for _ in classes]
    frame, first = random.choice(_FRAMES), random.choice((1, 1, 1, 0, 101))
    drawn = random.choices(classes, weights, k=random.choice((10, 12, 15, 20, 20, 25, 30, 40, 50, 60, 80, 100)))
    lines = "\n".join(frame.format(n=n, x=one) for n, one in enumerate(drawn, start=first))
    return random.choice(("", "Here are the labels:\n\n", f"{sentence(random)}\n\n")) + lines + _end(random, drawn)


def _end(random: Random, drawn: list[str]) -> str:
    """Nothing, or a sentence that sums up."""
    return random.choice(("", "", "\n", f"\n\nIn total {drawn.count(drawn[0])} of {len(drawn)} are {drawn[0]}."))


def one_line(random: Random) -> str:
    """Labels of a few items in one line."""
    classes = random.choice(_CLASSES)
    drawn = random.choices(classes, k=random.randrange(8, 41))
    frame, separator = random.choice(
        (("{x}", ", "), ("{n}={x}", ", "), ("{n}. {x}", " "), ("{n}: {x}", "; "), ('"{x}"', ", "))
    )
    return separator.join(frame.format(n=n, x=one) for n, one in enumerate(drawn, start=1)) + random.choice(("", "."))


def named(random: Random) -> str:
    """Labels behind names: attendance, votes, states of machines."""
    classes = random.choice(_CLASSES)
    frame = random.choice(
        ("- {w}: {x}", "{w}: {x}", "{n}. {w}: {x}", "| {w} | {x} |", "{w} - {x}", '{{"name": "{w}", "state": "{x}"}}')
    )
    lines = [frame.format(n=n, w=name(random), x=random.choice(classes)) for n in range(1, random.randrange(10, 60))]
    return f"{sentence(random)}\n\n" + "\n".join(lines)


CLASSES: dict[str, tuple[int, Callable[[Random], str]]] = {
    "labels": (300, labels),
    "labels-in-a-line": (60, one_line),
    "labels-of-names": (60, named),
}
