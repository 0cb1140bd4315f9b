# SPDX-License-Identifier: Apache-2.0
"""Sound work that repeats itself by its nature: ditto, knitting, doses, schedules, encoded silence, forms, drawn lots."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from tests.corpora.healthy.words import ADJECTIVES, NOUNS, PEOPLE, names, sentence

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random


def ditto(random: Random) -> str:
    """The same as above, between names."""
    word = random.choice(("as above", "ditto", "same as above", '"', "idem", "see above", "dito", "the same", "″"))
    entries: list[str] = []
    for one in names(random, random.randrange(4, 12)):
        entries += [one, *[word] * random.randrange(1, 7)]
    frame = random.choice(("{n}. {x}", "{n}: {x}", "- {x}", "| {n} | {x} |", "{n},{x}"))
    return "\n".join(frame.format(n=n, x=one) for n, one in enumerate(entries))


def knitting(random: Random) -> str:
    """A pattern in rows or rounds of two to four kinds in turn, and how it ends."""
    kinds = random.choice(
        (
            ("knit all stitches", "purl all stitches"), ("k", "p"), ("knit 40", "purl 40"), ("K2, P2 to end", "P2, K2 to end"),
            ("knit", "purl", "knit", "cable 4 front"), ("single crochet in each stitch, turn", "double crochet, chain 1, turn"),
            ("right side: knit", "wrong side: purl"), ("knit to the last stitch, slip 1", "purl to the last stitch, slip 1"),
        )
    )  # fmt: skip
    frame = random.choice(("Row {n}: {x}.", "Row {n} - {x}", "{n}. {x}", "Rnd {n}: {x}", "R{n}: {x}."))
    rows = [frame.format(n=n, x=kinds[(n - 1) % len(kinds)]) for n in range(1, random.randrange(20, 81))]
    start = random.choice(("Scarf:\n", "Cast on 40 stitches.\n", f"{sentence(random)}\n\n"))
    return (
        start
        + "\n".join(rows)
        + random.choice(("\nCast off.", "\nBind off loosely and weave in the ends.", "\n\nBlock it when it is done."))
    )


def doses(random: Random) -> str:
    """A plan of doses, the same for days on end, and what to mind."""
    amounts = sorted(
        {random.choice((5, 10, 15, 20, 25, 30, 40, 50)) for _ in range(random.randrange(1, 5))}, reverse=True
    )
    each = random.choice((3, 4, 5, 7))
    frame = random.choice(
        (
            "Day {n}: {x} mg",
            "Day {n}: take {x} mg in the morning",
            "{n}. {x} mg, one tablet",
            "Week {n}: {x} mg twice a day",
            "| {n} | {x} mg |",
        )
    )
    plan = [amount for amount in amounts for _ in range(each)]
    lines = [frame.format(n=n, x=amount) for n, amount in enumerate(plan, start=1)]
    return "\n".join(lines) + random.choice(("\n\nThen stop.", "\nSee your doctor after that.", ""))


def schedule(random: Random) -> str:
    """A plan of two to eight weeks that comes again every few days."""
    kinds = random.choice(
        (
            ("Push", "Pull", "Legs", "Rest"), ("run 5 km", "rest"), ("Upper body", "Lower body", "Cardio", "Rest", "Core"),
            tuple(random.sample(PEOPLE, random.randrange(2, 6))), ("early shift", "late shift", "night shift", "off"),
            ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"), ("vocals", "drums", "rest"),
        )
    )  # fmt: skip
    frame = random.choice(("Day {n}: {x}", "{n}. {x}", "- Day {n}: {x}", "Session {n} - {x}", "| {n} | {x} |"))
    days = random.choice((14, 21, 28, 28, 30, 31))
    lines = [frame.format(n=n, x=kinds[(n - 1) % len(kinds)]) for n in range(1, days + 1)]
    return f"{sentence(random)}\n\n" + "\n".join(lines) + random.choice(("", "\n\nRepeat after a week of rest."))


def silence(random: Random) -> str:
    """Base64 or hexadecimal of data that ends in a long run of the same bytes, and how it ends."""
    head = random.randbytes(random.randrange(60, 900))
    run = bytes([random.choice((0x00, 0x55, 0xFF, 0x80))]) * random.randrange(150, 900)
    data = head + run + random.randbytes(random.choice((0, 0, 30)))
    text = base64.b64encode(data).decode() if random.random() < 0.7 else data.hex()
    if random.random() < 0.4:
        text = "\n".join(text[start : start + 76] for start in range(0, len(text), 76))
    return f"```\n{text}\n```\n{random.choice(('That is the sound as base64; it ends in silence.', 'Decode it before you play it.', ''))}"


def form(random: Random) -> str:
    """A form or a template with numbered blanks."""
    block = random.choice(
        (
            "Patient {n}\nName: ____\nAge: ____\n", "Question {n}: ____________\nAnswer: ____________\n", "{n}. ______________________",
            "Player {n}: ____ points", "Guest {n}: ________ (meal: ____)", "[Image {n}]\nCaption:\n", "Line {n}: TODO", "col_{n} INTEGER,",
            "user{n}@example.com", "Slide {n}\n- Point\n- Point\n", "- [ ] Task {n}", "FIELD_{n} = None",
        )
    )  # fmt: skip
    return "\n".join(block.format(n=n) for n in range(1, random.randrange(8, 26)))


def lots(random: Random) -> str:
    """Coins, dice, cards, letters that were drawn."""
    kinds = random.choice(
        (
            ("heads", "tails"),
            ("H", "T"),
            tuple("123456"),
            ("red", "black"),
            tuple("ACGT"),
            ("up", "down", "left", "right"),
        )
    )
    separator = random.choice((", ", " ", "\n", "-"))
    return (
        f"{sentence(random)}\n\n"
        + separator.join(random.choice(kinds) for _ in range(random.randrange(20, 121)))
        + "\n\nThat is all."
    )


def song(random: Random) -> str:
    """Verses in which little changes, a chorus of one word."""
    chorus = random.choice(
        ("na na na na, hey hey hey", "la la la la la", "doo doo doo doo doo doo", "row, row, row", "oh oh oh oh")
    )
    verses = []
    for noun in random.sample(NOUNS, random.randrange(3, 8)):
        line = f"{random.choice(ADJECTIVES).capitalize()} {noun}, {chorus}"
        verses.append(
            "\n".join([line] * random.choice((2, 3, 4)) + [f"{noun.capitalize()} {random.choice(ADJECTIVES)}!"])
        )
    return "\n\n".join(verses)


def results(random: Random) -> str:
    """What a test runner or a compiler prints."""
    frame = random.choice(
        (
            "ok {n} - {x}",
            "test {x} ... ok",
            "[{n}/80] Compiling {x}.c",
            "PASS {x}.test.js",
            "{x} ... passed",
            "✓ {x}",
            "tests/test_{x}.py::test_{y} PASSED",
            "{n}: {x} OK",
        )
    )
    pairs = zip(names(random, 60), names(random, 60), strict=True)
    lines = [frame.format(n=n, x=x.lower(), y=y.lower()) for n, (x, y) in enumerate(pairs, start=1)]
    return "\n".join(lines[: random.randrange(15, 60)])


CLASSES: dict[str, tuple[int, Callable[[Random], str]]] = {
    "ditto": (80, ditto),
    "knitting": (80, knitting),
    "doses": (80, doses),
    "schedules": (80, schedule),
    "silence": (80, silence),
    "forms": (80, form),
    "lots": (80, lots),
    "songs": (80, song),
    "test-results": (80, results),
}
