# SPDX-License-Identifier: Apache-2.0
"""Passages without a loop, by class. None is stored: each is read from the environment or generated from a seed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from tests.corpora.healthy import (
    checking,
    digits,
    environment,
    labels,
    layout,
    lists,
    patterns,
    prose,
    records,
    repetitive,
    structured,
)
from tests.corpora.reasoning import healthy_reasoning

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

SEED = "healthy 1"

FROM_THE_ENVIRONMENT = environment.CLASSES
"""Differ with the version of Python and of the packages; the counts are upper bounds."""

GENERATED: dict[str, tuple[int, Callable[[Random], str]]] = {
    **digits.CLASSES,
    **layout.CLASSES,
    **lists.CLASSES,
    **prose.CLASSES,
    **records.CLASSES,
    **repetitive.CLASSES,
    **structured.CLASSES,
    **labels.CLASSES,
    **checking.CLASSES,
    **patterns.CLASSES,
    "reasoning": (250, healthy_reasoning),
}
"""How many, and what makes one. The same everywhere."""


@dataclass(frozen=True)
class Passage:
    """A healthy text.

    Attributes:
        id: class and number, `sql/0017`.
    """

    id: str
    text: str

    @property
    def kind(self) -> str:
        """The class."""
        return self.id.partition("/")[0]


def passages() -> Iterator[Passage]:
    """All passages, class by class."""
    for kind in (*FROM_THE_ENVIRONMENT, *GENERATED):
        yield from passages_of(kind)


def passages_of(kind: str) -> Iterator[Passage]:
    """The passages of one class, none twice."""
    texts = FROM_THE_ENVIRONMENT[kind]() if kind in FROM_THE_ENVIRONMENT else _generate(kind)
    for number, text in enumerate(dict.fromkeys(texts)):
        yield Passage(f"{kind}/{number:04d}", text)


def _generate(kind: str) -> Iterator[str]:
    count, make = GENERATED[kind]
    for number in range(count):
        yield make(Random(f"{SEED} {kind} {number}"))


def fingerprint(texts: Iterable[str]) -> str:
    """A short hash of texts, so that a change of any is seen."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()[:16]
