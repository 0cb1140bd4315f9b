# SPDX-License-Identifier: Apache-2.0
"""210 small tasks in thirds. Their right answers are computed, or looked up in the tables below."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from tests.evaluation.sets.lists import PARTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    Task = tuple[str, str, dict[str, Any]]
    """Its id, what is asked, and the check."""

SEED = 20261129
OF_EACH = 15

_CAPITALS = {
    "Spain": "Madrid", "Portugal": "Lisbon", "Greece": "Athens", "Austria": "Vienna", "Poland": "Warsaw",
    "Norway": "Oslo", "Sweden": "Stockholm", "Ireland": "Dublin", "Russia": "Moscow", "China": "Beijing",
    "Cuba": "Havana", "Peru": "Lima", "Kenya": "Nairobi", "Hungary": "Budapest", "South Korea": "Seoul",
}  # fmt: skip
_OPPOSITES: dict[str, str | list[str]] = {
    "big": "small", "fast": "slow", "old": ["new", "young"], "wet": "dry", "open": ["closed", "close", "shut"],
    "left": "right", "early": "late", "happy": ["sad", "unhappy"], "strong": "weak", "high": "low",
    "light": ["dark", "heavy"], "full": "empty", "rich": "poor", "start": ["end", "stop", "finish"], "loud": ["quiet", "soft"],
}  # fmt: skip
_FACTS: dict[str, tuple[str, str | list[str]]] = {
    "grass": ("What color is grass?", "green"),
    "legs-spider": ("How many legs does a spider have?", ["8", "eight"]),
    "minutes": ("How many minutes are in an hour?", ["60", "sixty"]),
    "months": ("How many months are in a year?", ["12", "twelve"]),
    "hamlet": ("Who wrote the play Hamlet?", "Shakespeare"),
    "sun": ("Which star is at the center of our solar system?", ["sun", "the sun"]),
    "bees": ("Which insect makes honey?", ["bee", "bees", "honeybee", "honeybees"]),
    "gravity": ("Which scientist formulated the law of universal gravitation?", "Newton"),
    "red-planet": ("Which planet is called the red planet?", "Mars"),
    "mona-lisa": ("Who painted the Mona Lisa?", ["Leonardo", "da Vinci", "Vinci"]),
    "breathe": ("Which gas in the air do people need to breathe?", "oxygen"),
    "freeze": ("What does water become when it freezes?", "ice"),
    "wall": ("In which country is the Great Wall?", "China"),
    "moon-first": ("Who was the first person to walk on the moon?", "Armstrong"),
    "triangle": ("How many sides does a triangle have?", ["3", "three"]),
}
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_WORDS = (
    "river", "candle", "window", "garden", "yellow", "bottle", "forest", "silver", "market", "pencil", "bridge",
    "winter", "basket", "copper", "island", "ladder", "meadow", "needle", "orange", "pillow", "rabbit", "saddle",
    "tunnel", "velvet", "wagon", "anchor", "button", "cotton", "dragon", "engine",
)  # fmt: skip
_PLURALS = {
    "dog": "dogs", "box": "boxes", "city": "cities", "man": "men", "child": "children", "leaf": "leaves",
    "tooth": "teeth", "church": "churches", "baby": "babies", "wolf": "wolves", "bus": "buses", "book": "books",
    "woman": "women", "knife": "knives", "tree": "trees",
}  # fmt: skip
_SENTENCES = (
    "The train leaves at seven.", "Two birds sat on the fence.", "Nobody heard the old clock.", "My sister plays the cello.",
    "Rain fell on the tin roof.", "He painted the door blue.", "The soup was much too hot.", "Every road leads to the sea.",
    "She found a coin in the sand.", "The cat slept under the stove.", "We walked home in the snow.",
    "A lamp burned in the tower.", "The baker gave us warm bread.", "His boots were full of water.", "The letter came on Friday.",
)  # fmt: skip
_IN_OTHER_SETS = {(3, 4), (20, 30), (5, 3), (6, 7)}


def make() -> dict[str, Any]:
    """The set, as plain data. Every third task of each kind goes to each part, and kinds take turns."""
    kinds = [list(kind(random.Random(f"{SEED}/{kind.__name__}"))) for kind in _KINDS]
    probes = [
        _probe(task, PARTS[(place + number) % len(PARTS)])
        for place in range(OF_EACH)
        for number, kind in enumerate(kinds)
        for task in kind[place : place + 1]
    ]
    about = "210 small tasks with answers that a machine can judge, divided into thirds."
    return {"name": "wide-tasks", "use": "skills", "about": about, "probes": probes}


def _probe(task: Task, part: str) -> dict[str, Any]:
    name, prompt, check = task
    return {
        "id": name,
        "prompt": prompt,
        "completion": f"Question: {prompt}\nAnswer:",
        "half": part,
        "check": check,
    }


def _says(answer: str | list[str], **more: Any) -> dict[str, Any]:
    return {"kind": "says", "any": answer if isinstance(answer, list) else [answer], **more}


def _number(value: int) -> dict[str, Any]:
    return {"kind": "number", "value": value}


def _add(source: random.Random) -> Iterator[Task]:
    for first, second in _pairs(source, 2, 30):
        yield f"add-{first}-{second}", f"What is {first} + {second}? Answer with the number.", _number(first + second)


def _subtract(source: random.Random) -> Iterator[Task]:
    for first, second in _pairs(source, 2, 30):
        yield (
            f"subtract-{first + second}-{first}",
            f"What is {first + second} - {first}? Answer with the number.",
            _number(second),
        )


def _multiply(source: random.Random) -> Iterator[Task]:
    for first, second in _pairs(source, 2, 11):
        yield (
            f"multiply-{first}-{second}",
            f"What is {first} times {second}? Answer with the number.",
            _number(first * second),
        )


def _larger(source: random.Random) -> Iterator[Task]:
    for first, second in _pairs(source, 10, 99):
        yield f"larger-{first}-{second}", f"Which number is larger, {first} or {second}?", _number(max(first, second))


def _next(source: random.Random) -> Iterator[Task]:
    for first, step in _pairs(source, 2, 9):
        shown = ", ".join(str(first + step * place) for place in range(4))
        yield (
            f"next-{first}-{step}",
            f"Which number comes next: {shown}? Answer with that number.",
            _number(first + 4 * step),
        )


def _pairs(source: random.Random, least: int, most: int) -> list[tuple[int, int]]:
    numbers = range(least, most + 1)
    every = [(first, second) for first in numbers for second in numbers if first != second]
    return source.sample([pair for pair in every if pair not in _IN_OTHER_SETS], OF_EACH)


def _copy_sentence(_: random.Random) -> Iterator[Task]:
    for number, sentence in enumerate(_SENTENCES, 1):
        yield f"copy-{number}", f"Repeat this sentence exactly: {sentence}", _says(sentence, exact=True)


def _copy_code(source: random.Random) -> Iterator[Task]:
    for _ in range(OF_EACH):
        letters = "".join(source.sample("ABCDEFGHKLMNPRSTUVWXZ", 2))
        code = f"{letters}-{source.randrange(1000, 9999)}"
        yield f"code-{code.lower()}", f"Copy this code exactly: {code}", _says(code, exact=True)


def _capitals(source: random.Random) -> Iterator[Task]:
    for word in source.sample(_WORDS, OF_EACH):
        yield f"capitals-{word}", f'Write the word "{word}" in capital letters.', _says(word.upper(), exact=True)


def _json(source: random.Random) -> Iterator[Task]:
    for _ in range(OF_EACH):
        first, second = source.sample(_WORDS, 2)
        yield (
            f"json-{first}-{second}",
            f'Write a JSON object with the keys "{first}" and "{second}", both with the value 1. Give only the JSON.',
            {"kind": "json", "keys": [first, second]},
        )


def _capital(_: random.Random) -> Iterator[Task]:
    for country, city in _CAPITALS.items():
        yield f"capital-{_id(country)}", f"What is the capital of {country}?", _says(city)


def _opposite(_: random.Random) -> Iterator[Task]:
    for word, other in _OPPOSITES.items():
        yield f"opposite-{word}", f"What is the opposite of {word}? Answer in one word.", _says(other)


def _fact(_: random.Random) -> Iterator[Task]:
    for name, (question, answer) in _FACTS.items():
        yield f"fact-{name}", question, _says(answer)


def _plural(_: random.Random) -> Iterator[Task]:
    for word, plural in _PLURALS.items():
        yield f"plural-{word}", f'What is the plural of "{word}"? Answer in one word.', _says(plural)


def _after(_: random.Random) -> Iterator[Task]:
    for names, what, count in ((_DAYS, "day", len(_DAYS)), (_MONTHS, "month", OF_EACH - len(_DAYS))):
        for place in range(count):
            name, following = names[place], names[(place + 1) % len(names)]
            yield f"after-{name.lower()}", f"Which {what} comes right after {name}?", _says(following)


def _id(words: str) -> str:
    return words.lower().replace(" ", "-")


_KINDS = (
    _add, _copy_sentence, _capital, _next, _opposite, _copy_code, _fact, _subtract, _plural, _json, _larger, _after,
    _capitals, _multiply,
)  # fmt: skip
