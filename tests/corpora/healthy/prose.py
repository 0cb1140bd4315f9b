# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: RUF001, SIM905  (Long lists of words read best as text, and other scripts are meant.)
"""Verse with refrains, dialogue, plays, and prose in several languages. Traditional texts and own ones."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from tests.corpora.healthy.words import ADJECTIVES, CITIES, COLOURS, NOUNS, PEOPLE, VERBS, name, paragraph, sentence

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

GIFTS = (
    "a partridge in a pear tree",
    "two turtle doves",
    "three French hens",
    "four calling birds",
    "five gold rings",
    "six geese a-laying",
    "seven swans a-swimming",
    "eight maids a-milking",
    "nine ladies dancing",
    "ten lords a-leaping",
    "eleven pipers piping",
    "twelve drummers drumming",
)
ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()
HOUSE = (
    "the house that Jack built",
    "the malt that lay in",
    "the rat that ate",
    "the cat that killed",
    "the dog that worried",
    "the cow with the crumpled horn that tossed",
    "the maiden all forlorn that milked",
    "the man all tattered and torn that kissed",
    "the priest all shaven and shorn that married",
    "the cock that crowed in the morn that waked",
)
SOUNDS = (("cow", "moo"), ("pig", "oink"), ("duck", "quack"), ("sheep", "baa"), ("dog", "woof"), ("horse", "neigh"))
COUNTING = "ten nine eight seven six five four three two one no".split()


def verse(random: Random) -> str:
    """A song or a poem with a refrain."""
    return random.choice(
        (_twelve_days, _house, _farm, _bottles, _boat, _bridge, _own_song, _own_song, _own_song, _lullaby)
    )(random)


def _twelve_days(random: Random) -> str:
    last, verses = random.randrange(3, 13), []
    for day in range(last):
        gifts = [*reversed(GIFTS[1 : day + 1]), ("and " if day else "") + GIFTS[0]]
        verses.append(f"On the {ORDINALS[day]} day of Christmas my true love sent to me\n" + ",\n".join(gifts) + ".")
    return "\n\n".join(verses)


def _house(random: Random) -> str:
    verses = []
    for last in range(random.randrange(4, len(HOUSE) + 1)):
        verses.append("This is " + "\n".join(reversed(HOUSE[: last + 1])) + ".")
    return "\n\n".join(verses)


def _farm(random: Random) -> str:
    animals = random.sample(SOUNDS, random.randrange(2, 7))
    return "\n\n".join(
        f"Old MacDonald had a farm, E-I-E-I-O,\nAnd on that farm he had a {animal}, E-I-E-I-O,\n"
        f"With a {sound}-{sound} here and a {sound}-{sound} there,\nHere a {sound}, there a {sound}, "
        f"everywhere a {sound}-{sound},\nOld MacDonald had a farm, E-I-E-I-O."
        for animal, sound in animals
    )


def _bottles(random: Random) -> str:
    colour, place = random.choice(COLOURS), random.choice(("hanging on the wall", "standing on the shelf"))
    count = random.randrange(4, 11)
    verses = []
    for now, then in zip(COUNTING[10 - count : 10], COUNTING[11 - count :], strict=True):
        line = f"{now.title()} {colour} bottles {place}"
        verses.append(
            f"{line},\n{line},\nAnd if one {colour} bottle should accidentally fall,\nThere'll be {then} {colour} bottles {place}."
        )
    return "\n\n".join(verses)


def _boat(random: Random) -> str:
    verse = (
        "Row, row, row your boat,\nGently down the stream.\nMerrily, merrily, merrily, merrily,\nLife is but a dream."
    )
    return "\n\n".join([verse] * random.randrange(1, 3))


def _bridge(random: Random) -> str:
    materials = ("wood and clay", "bricks and mortar", "iron and steel", "silver and gold")
    return "\n\n".join(
        f"Build it up with {one},\n{one.capitalize()}, {one},\nBuild it up with {one},\nMy fair lady."
        for one in materials[: random.randrange(2, 5)]
    )


def _own_song(random: Random) -> str:
    noun, adjective = random.choice(NOUNS), random.choice(ADJECTIVES)
    refrain = f"Oh {noun}, {adjective} {noun}, sing for me,\nSing till the morning, sing for me."
    if random.random() < 0.3:
        refrain += "\nLa la la la la la,\nLa la la la la la."
    verses = ["\n".join(sentence(random) for _ in range(4)) for _ in range(random.randrange(2, 6))]
    return "\n\n".join(part for one in verses for part in (one, refrain))


def _lullaby(random: Random) -> str:
    gifts = random.sample(NOUNS, random.randrange(4, 10))
    lines = [
        f"And if that {one} won't shine,\nPapa's going to buy you a {other} so fine." for one, other in pairwise(gifts)
    ]
    return "Hush, little baby, don't say a word.\n" + "\n".join(lines)


def dialogue(random: Random) -> str:
    """Two people talk, or a customer and a shop, with questions that come again."""
    one, other = random.sample(PEOPLE, 2)
    if random.random() < 0.3:
        things = random.sample(NOUNS, random.randrange(4, 13))
        return "\n".join(
            f'"Do you have a {thing}?" asked {one}.\n"{random.choice(("Yes, I do", "No, I am sorry", "Not today"))}," said {other}.'
            for thing in things
        )
    style = random.choice(("{who}: {what}", '"{what}" said {who}.', "**{who}:** {what}"))
    turns = range(random.randrange(6, 20))
    return "\n".join(style.format(who=(one, other)[turn % 2], what=sentence(random)) for turn in turns)


def play(random: Random) -> str:
    """A scene with stage directions."""
    cast = [one.upper() for one in random.sample(PEOPLE, 4)]
    lines = [f"SCENE {random.randrange(1, 9)}. {random.choice(CITIES)}. A {random.choice(NOUNS)}."]
    for _ in range(random.randrange(8, 22)):
        who = random.choice(cast)
        direction = random.choice(("", "", " (aside)", " (laughing)", " (to the audience)"))
        lines.append(f"{who}.{direction} {paragraph(random, 1, 3)}")
        if random.random() < 0.2:
            lines.append(random.choice(("[Exit.]", f"[Enter {random.choice(cast)}.]", "[A pause.]")))
    return "\n\n".join(lines)


def story(random: Random) -> str:
    """Plain prose; some of it with an anaphora."""
    if random.random() < 0.3:
        start = f"We shall {random.choice(('remember', 'look for', 'sing of', 'keep'))} the"
        return " ".join(
            f"{start} {random.choice(NOUNS)} {random.choice(('of', 'in', 'near'))} {one}."
            for one in random.sample(CITIES, 8)
        )
    return "\n\n".join(paragraph(random) for _ in range(random.randrange(2, 8)))


# Article 1 of the Universal Declaration of Human Rights, which may be copied freely.
_ARTICLE = (
    "All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience and should act towards one another in a spirit of brotherhood.",
    "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt und sollen einander im Geiste der Brüderlichkeit begegnen.",
    "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et de conscience et doivent agir les uns envers les autres dans un esprit de fraternité.",
    "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como están de razón y conciencia, deben comportarse fraternalmente los unos con los otros.",
    "Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti. Essi sono dotati di ragione e di coscienza e devono agire gli uni verso gli altri in spirito di fratellanza.",
    "Todos os seres humanos nascem livres e iguais em dignidade e em direitos. Dotados de razão e de consciência, devem agir uns para com os outros em espírito de fraternidade.",
    "Alle mensen worden vrij en gelijk in waardigheid en rechten geboren. Zij zijn begiftigd met verstand en geweten, en behoren zich jegens elkander in een geest van broederschap te gedragen.",
    "Alla människor är födda fria och lika i värde och rättigheter. De är utrustade med förnuft och samvete och bör handla gentemot varandra i en anda av broderskap.",
    "Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw. Są oni obdarzeni rozumem i sumieniem i powinni postępować wobec innych w duchu braterstwa.",
    "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью и должны поступать в отношении друг друга в духе братства.",
    "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。",
    "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。人間は、理性と良心とを授けられており、互いに同胞の精神をもって行動しなければならない。",
    "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. 인간은 천부적으로 이성과 양심을 부여받았으며 서로 형제애의 정신으로 행동하여야 한다.",
    "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق. وقد وهبوا عقلاً وضميرًا وعليهم أن يعامل بعضهم بعضًا بروح الإخاء.",
    "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar. Akıl ve vicdana sahiptirler ve birbirlerine karşı kardeşlik zihniyeti ile hareket etmelidirler.",
    "Kaikki ihmiset syntyvät vapaina ja tasavertaisina arvoltaan ja oikeuksiltaan. Heille on annettu järki ja omatunto, ja heidän on toimittava toisiaan kohtaan veljeyden hengessä.",
)


def languages_side_by_side(random: Random) -> str:
    """The same article in several languages, as a phrase book has it."""
    found = random.sample(_ARTICLE, random.randrange(1, 6))
    return "\n\n".join(found)


def recipe(random: Random) -> str:
    """Steps that begin alike."""
    lines = [
        f"{step}. {random.choice(('Add', 'Add', 'Stir in', 'Fold in'))} the {random.choice(COLOURS)} {name(random)}."
        for step in range(1, random.randrange(8, 20))
    ]
    return "\n".join(
        [sentence(random), "", *lines, "", f"{random.choice(PEOPLE)} {random.choice(VERBS)} it while it is hot."]
    )


CLASSES: dict[str, tuple[int, Callable[[Random], str]]] = {
    "verse": (280, verse),
    "dialogue": (180, dialogue),
    "plays": (120, play),
    "stories": (200, story),
    "phrase-book": (60, languages_side_by_side),
    "recipes": (80, recipe),
}
