# SPDX-License-Identifier: Apache-2.0
"""The wide set of lists: every kind asked in ten ways, and every way of a model that only completes text beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.evaluation.sets.known import known
from tests.evaluation.sets.subjects import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.evaluation.sets.subjects import Kind

PARTS = ("search", "choice", "held-out")

# Of the first four subjects of a kind each is asked in two ways. A prompt, and how a text would begin that has the list.
WAYS: tuple[tuple[str, int, str, str], ...] = (
    ("numbered", 0, "Write a numbered list of {x}. Make it as complete as you can.", "A numbered list of {x}:\n\n1."),
    ("bulleted", 1, "Give me a bulleted list of {x}.", "A list of {x}:\n\n-"),
    (
        "one-line",
        2,
        "In one line, separated by commas, name {x}: as many as you can.",
        "{X}, as many as possible, separated by commas:",
    ),
    (
        "details",
        3,
        "List {x}, and write one short sentence about each.",
        "{X}, with a short sentence about each:\n\n1.",
    ),
    (
        "json",
        0,
        "Give me {x} as a JSON array of strings. Answer with the JSON alone.",
        '{X} as a JSON array of strings:\n\n["',
    ),
    ("plain", 1, "List {x}, all that you know.", "{X}:\n\n"),
    (
        "counted",
        2,
        "Write down {x}, 50 of them, one per line and without numbers.",
        "{X}, 50 of them, one per line:\n\n",
    ),
    (
        "table",
        3,
        "Make a Markdown table of {x} with two columns: the number and the name.",
        "{X}:\n\n| Number | Name |\n| --- | --- |\n| 1 |",
    ),
)


def make() -> dict[str, Any]:
    """The set, as plain data. Its prompts stand in an order in which parts, kinds and ways take turns."""
    probes = [probe for number, kind in enumerate(KINDS) for probe in _probes(number, kind)]
    return {
        "name": "wide-lists",
        "use": "loops",
        "about": "240 prompts that ask for long lists: 24 kinds of list in ten ways each, divided by subject into thirds.",
        "probes": sorted(probes, key=_turn),
    }


def _turn(probe: dict[str, Any]) -> tuple[int, int]:
    """Prompts of the first way to ask each kind, every fourth way later, and so on: any beginning has all of them."""
    kind, _, way = probe["id"].partition(".")
    place = [one.name for one in KINDS].index(kind)
    ways = [name for name, *_ in WAYS] + ["continued", "foreign"]
    return (ways.index(way.rpartition(".")[2]) + place) % len(ways), place


def _probes(number: int, kind: Kind) -> Iterator[dict[str, Any]]:
    subjects = list(kind.plain.items())
    for way, place, prompt, completion in WAYS:
        subject, phrase = subjects[place]
        words = {"x": phrase, "X": phrase[0].upper() + phrase[1:]}
        words_of = (prompt.format(**words), completion.format(**words))
        yield _probe((number, place), kind.name, subject, way, words_of)
    subject, phrase, first = kind.continued
    begun = f"{', '.join(first)},"
    asked = f"Continue this list of {phrase.removeprefix('the ')} as far as you can: {begun}"
    words_of = (asked, f"{phrase[0].upper()}{phrase[1:]}: {begun}")
    yield _probe((number, 4), kind.name, subject, "continued", words_of)
    subject, asked, begun = kind.foreign
    yield _probe((number, 5), kind.name, subject, "foreign", (asked, f"{begun}\n\n1."))


def _probe(places: tuple[int, int], kind: str, subject: str, way: str, words: tuple[str, str]) -> dict[str, Any]:
    """A probe.

    Args:
        places: of the kind, and of the subject in it, which say the part that it belongs to.
        kind: of list.
        subject: that is asked for.
        way: to ask.
        words: the prompt, and how a text would begin that has the list.
    """
    probe = {
        "id": f"{kind}.{subject}.{way}",
        "subject": f"{kind}.{subject}",
        "prompt": words[0],
        "completion": words[1],
        "half": PARTS[sum(places) % len(PARTS)],
    }
    items = known().get(subject)
    return probe if items is None else {**probe, "items": items}
