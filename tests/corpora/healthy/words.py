# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: SIM905  (Long lists of words read best as text.)
"""Words of which healthy text is made, and names and sentences that are invented from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random

NOUNS = tuple(
    "river bridge lantern garden window market letter harbour kettle ladder basket mirror valley engine carpet meadow "
    "signal button pocket hammer island forest ticket blanket cottage picture cloud anchor saddle orchard candle "
    "barrel chimney feather pebble tunnel whistle drawer statue ribbon thunder compass needle village cabinet".split()
)
VERBS = tuple(
    "finds paints carries follows opens repairs forgets remembers borrows sells watches hides cleans measures counts "
    "lifts draws guards visits answers mends sketches polishes collects".split()
)
ADJECTIVES = tuple(
    "old quiet green narrow heavy bright early broken gentle curious distant empty golden hollow patient rough silver "
    "slow tall warm wooden young plain tidy".split()
)
PEOPLE = tuple(
    "Anna Boris Clara David Emma Farid Greta Hugo Irene Jonas Karin Leo Mira Noah Olga Pablo Rosa Samuel Tessa Umar "
    "Vera Walter Yasmin Zoe".split()
)
CITIES = tuple(
    "Lisbon Oslo Cairo Lima Quito Delhi Kyoto Perth Accra Tunis Bergen Porto Seville Turin Gdansk Riga Malmo Bruges "
    "Nairobi Manila Hanoi Dakar Havana Montreal Boston Denver".split()
)
COLOURS = tuple("red blue green yellow black white orange purple brown grey pink teal".split())
PLACES = ("beside", "under", "behind", "near", "above", "across from", "inside", "beyond")
_SYLLABLES = tuple(
    "ba be bi bo dra dru el en fa fi gra gor ka ki kor la lu mar mi na no or pel pi qua ra ri sha sol ta tur va ven "
    "vi wo xan yo zar ze".split()
)


def name(random: Random) -> str:
    """An invented name: `Tarvensol`."""
    return "".join(random.choice(_SYLLABLES) for _ in range(random.randrange(2, 5))).capitalize()


def names(random: Random, count: int) -> list[str]:
    """So many different names."""
    made: dict[str, None] = {}
    while len(made) < count:
        made[name(random)] = None
    return list(made)


def sentence(random: Random) -> str:
    """A sentence of usual words; over a thousand million different ones."""
    start = random.choice((f"The {random.choice(ADJECTIVES)} {random.choice(NOUNS)}", random.choice(PEOPLE)))
    middle = f"{random.choice(VERBS)} the {random.choice(ADJECTIVES)} {random.choice(NOUNS)}"
    end = random.choice((f" {random.choice(PLACES)} the {random.choice(NOUNS)}", f" in {random.choice(CITIES)}", ""))
    return f"{start} {middle}{end}."


def paragraph(random: Random, least: int = 2, most: int = 7) -> str:
    """A few sentences."""
    return " ".join(sentence(random) for _ in range(random.randrange(least, most)))
