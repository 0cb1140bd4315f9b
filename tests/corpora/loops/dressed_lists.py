# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: RUF001  (Signs of other scripts are what these texts are made of.)
"""Lists that decay in other dress than `1. X`: the counter stands elsewhere, entries are quoted or marked up, are
records of a data format, links, headings with a sentence below."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from tests.corpora.healthy.lists import COUNTRIES, ELEMENTS, STATES
from tests.corpora.healthy.words import names, sentence
from tests.corpora.loops.text_loop import TextLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

    Entry: TypeAlias = Callable[[int, str], str]

_ARABIC = str.maketrans("0123456789", "٠١٢٣٤٥٦٧٨٩")
_DEVANAGARI = str.maketrans("0123456789", "०१२३४५६७८९")
_FULL_WIDTH = str.maketrans("0123456789", "０１２３４５６７８９")

COUNTED: dict[str, tuple[str, str]] = {
    "json-compact": ('{{"number":{n},"name":"{x}"}}', ","),
    "json-line": ('{{"id": {n}, "name": "{x}"}}', "\n"),
    "json-pretty": ('    {{\n      "id": {n},\n      "name": "{x}"\n    }}', ",\n"),
    "json-keys": ('  "{n}": "{x}"', ",\n"),
    "python-tuples": ('    ({n}, "{x}")', ",\n"),
    "sql-rows": ("({n}, '{x}', 'active')", ",\n"),
    "sql-inserts": ("INSERT INTO things (id, name) VALUES ({n}, '{x}');", "\n"),
    "yaml": ("  - id: {n}\n    name: {x}", "\n"),
    "toml": ('[[thing]]\nid = {n}\nname = "{x}"', "\n\n"),
    "xml": ('  <item id="{n}">{x}</item>', "\n"),
    "xml-nested": ("  <item>\n    <number>{n}</number>\n    <name>{x}</name>\n  </item>", "\n"),
    "html-option": ('<option value="{n}">{x}</option>', "\n"),
    "html-list": ("<li>{n}. {x}</li>", "\n"),
    "csv": ("{n},{x},common", "\n"),
    "csv-quoted": ('"{n}","{x}"', "\n"),
    "table": ("| {n} | {x} | common |", "\n"),
    "table-two": ("| {n} | {x} |", "\n"),
    "tsv": ("{n}\t{x}", "\n"),
    "quoted": ('{n}. "{x}"', "\n"),
    "backticks": ("{n}. `{x}`", "\n"),
    "italic": ("{n}. _{x}_", "\n"),
    "bold-whole": ("**{n}. {x}**", "\n"),
    "bold-counter": ("**{n}.** {x}", "\n"),
    "episode": ('Episode {n}: "{x}"', "\n"),
    "season-episode": ('Season 1, Episode {n}: "{x}"', "\n"),
    "s01e05": ("S01E{n:02d} - {x}", "\n"),
    "1x05": ("1x{n:02d} {x}", "\n"),
    "atomic-number": ("Atomic number {n}: {x}", "\n"),
    "chapter": ("Chapter {n} - {x}", "\n"),
    "day": ("Day {n} — {x}", "\n"),
    "number-sign": ("No. {n} {x}", "\n"),
    "hash": ("#{n} {x}", "\n"),
    "brackets": ("[{n}] {x}", "\n"),
    "question": ("Q{n}: {x}", "\n"),
    "ordinal": ("The {n}th is {x}.", "\n"),
    "trailing": ("{x} ({n})", "\n"),
    "trailing-hash": ("- {x} #{n}", "\n"),
    "trailing-bare": ("{x} {n}", "\n"),
    "assignment": ('item_{n} = "{x}"', "\n"),
    "years-inline": ("{y} {x}", ", "),
    "years-colon": ("{y}: {x}", "\n"),
    "two-counters": ("{n}. {y}: {x}", "\n"),
    "inline-numbers": ("{n}. {x}", " "),
    "inline-brackets": ("({n}) {x}", "; "),
    "inline-equals": ("{n}={x}", ", "),
    "links": ("{n}. [{x}](https://example.org/{n})", "\n"),
    "links-bullets": ("- [{x}](https://example.org/page/{n})", "\n"),
    "heading-sentence": ("### {n}. {x}\n\n{x} is well known for what it is.", "\n\n"),
    "heading-after": ("## {x} {n}\nIt is found in many places.", "\n\n"),
    "heading-plain": ("{n}. {x}\n   It is found in many places and is easy to see.", "\n"),
    "arabic-digits": ("{a}. {x}", "\n"),
    "devanagari-digits": ("{d}. {x}", "\n"),
    "full-width-digits": ("{f}．{x}", "\n"),
    "chinese": ("第{n}章：{x}", "\n"),
    "chinese-comma": ("{n}、{x}", "\n"),
    "spaced": ("{n}.   {x}", "\n\n"),
    "task": ("- [ ] {n}: {x}", "\n"),
    "definition": ("{n}. {x}: a thing of its kind", "\n"),
    "log": ("[{n}/999] {x}", "\n"),
}
"""Entry and separator of lists with a counter `n` (or a year `y`), in which one answer is enough for a loop."""

UNCOUNTED: dict[str, tuple[str, str]] = {
    "json-names": ('{{"name":"{x}"}}', ","),
    "json-strings": ('    "{x}"', ",\n"),
    "python-strings": ("'{x}'", ", "),
    "yaml-names": ("  - name: {x}", "\n"),
    "xml-names": ("  <name>{x}</name>", "\n"),
    "html-items": ("<li>{x}</li>", "\n"),
    "table-names": ("| {x} | common |", "\n"),
    "csv-names": ("{x},common", "\n"),
    "quoted-lines": ('"{x}"', "\n"),
    "quoted-bullets": ('- "{x}"', "\n"),
    "link-bullets": ("- [{x}](https://example.org)", "\n"),
    "bold-bullets": ("* **{x}**", "\n"),
    "arrows": ("→ {x}", "\n"),
    "semicolons": ("{x}", "; "),
    "pipes": ("{x}", " | "),
    "slashes": ("{x}", " / "),
}
"""Without a counter: two answers or more, in no order."""

_OPENINGS = {
    "json-compact": ('{"things":[', "]}"),
    "json-names": ("[", "]"),
    "json-pretty": ('{\n  "things": [\n', "\n  ]\n}"),
    "json-keys": ("{\n", "\n}"),
    "json-strings": ("[\n", "\n]"),
    "python-strings": ("things = [", "]"),
    "python-tuples": ("THINGS = [\n", "\n]"),
    "sql-rows": ("INSERT INTO things (id, name, state) VALUES\n", ";"),
    "yaml": ("things:\n", "\n"),
    "yaml-names": ("things:\n", "\n"),
    "xml": ("<items>\n", "\n</items>"),
    "xml-nested": ("<items>\n", "\n</items>"),
    "xml-names": ("<names>\n", "\n</names>"),
    "csv": ("id,name,state\n", "\n"),
    "csv-quoted": ('"id","name"\n', "\n"),
    "csv-names": ("name,state\n", "\n"),
    "table": ("| No. | Name | State |\n|---|---|---|\n", "\n"),
    "table-two": ("| # | Name |\n|---|---|\n", "\n"),
    "table-names": ("| Name | State |\n|---|---|\n", "\n"),
    "html-list": ("<ul>\n", "\n</ul>"),
    "html-items": ("<ul>\n", "\n</ul>"),
    "html-option": ("<select>\n", "\n</select>"),
}

_BIRDS = [
    "Kestrel",
    "Marlin",
    "Osprey",
    "Heron",
    "Plover",
    "Dunlin",
    "Curlew",
    "Godwit",
    "Ruff",
    "Stint",
    "Whimbrel",
    "Avocet",
    "Lapwing",
    "Turnstone",
    "Sanderling",
    "Knot",
    "Redshank",
    "Snipe",
    "Woodcock",
    "Great Northern Diver",
    "Black-headed Gull",
    "Little Tern",
    "House Sparrow",
    "Tree Pipit",
    "Reed Warbler",
    "Song Thrush",
    "Grey Wagtail",
    "Long-tailed Tit",
    "Pied Flycatcher",
    "Corn Bunting",
]
_OTHER_SCRIPTS = (
    [
        "Москва",
        "Казань",
        "Самара",
        "Тверь",
        "Омск",
        "Томск",
        "Пермь",
        "Уфа",
        "Тула",
        "Орёл",
        "Псков",
        "Сочи",
        "Чита",
        "Анапа",
        "Выборг",
    ],
    [
        "北京",
        "上海",
        "广州",
        "深圳",
        "杭州",
        "南京",
        "武汉",
        "成都",
        "西安",
        "重庆",
        "天津",
        "苏州",
        "青岛",
        "大连",
        "厦门",
    ],
    [
        "الدرسة الحمراء",
        "النسر الذهبي",
        "الصقر الحر",
        "البوم الأبيض",
        "الحمام الزاجل",
        "اللقلق الأسود",
        "الغراب",
        "البجع",
        "النورس",
        "القبرة",
    ],
    ["दिल्ली", "मुंबई", "कोलकाता", "चेन्नई", "पुणे", "जयपुर", "लखनऊ", "कानपुर", "नागपुर", "इंदौर", "भोपाल", "पटना"],
    ["東京", "大阪", "京都", "名古屋", "札幌", "福岡", "神戸", "仙台", "広島", "横浜", "千葉", "金沢"],
)
_TITLES = tuple(f"The {a} {b}" for a in ("Last", "Lost", "Long", "Red", "New", "Dark") for b in ("Letter", "Road", "Night", "House", "King", "Return"))  # fmt: skip


def _known(random: Random) -> list[str]:
    """Right entries, in some order."""
    source = random.choice((STATES, COUNTRIES, ELEMENTS, _BIRDS, _TITLES, names(random, 40), *_OTHER_SCRIPTS))
    return random.sample(list(source), len(source))


def _entry(frame: str, random: Random) -> Entry:
    first_year = random.randrange(1900, 2031)

    def entry(n: int, x: str) -> str:
        said = {"a": _ARABIC, "d": _DEVANAGARI, "f": _FULL_WIDTH}
        digits = {key: str(n).translate(table) for key, table in said.items()}
        return frame.format(n=n, y=first_year + n, x=x, **digits)

    return entry


def _written(
    random: Random, family: str, frame: tuple[str, str], sound: Sequence[str], stuck: Sequence[str]
) -> TextLoop:
    """A list that goes well over `sound` and not over `stuck`; one in six is left again, with all that closes it."""
    entry, separator = _entry(frame[0], random), frame[1]
    opening, closing = _OPENINGS.get(family, ("", ""))
    first = random.choice((1, 1, 1, 0, 5))
    entries = [entry(n, x) for n, x in enumerate((*sound, *stuck), start=first)]
    intro = random.choice(("", sentence(random) + "\n\n"))
    before = intro + opening + "".join(one + separator for one in entries[: len(sound)])
    loop = separator.join(entries[len(sound) :])
    if sound and random.random() < 1 / 6:
        return TextLoop(("decay",), before, loop, f"{closing}\n\n{sentence(random)} {sentence(random)}")
    return TextLoop(("decay",), before, loop + random.choice((separator, "")))


def counted(family: str) -> Callable[[Random], TextLoop]:
    """Makes lists in the dress `family` that stick to one to four answers; a third from the first entry on."""

    def make(random: Random) -> TextLoop:
        known = _known(random)
        from_start = random.random() < 1 / 3
        good = 0 if from_start else random.randrange(4, min(17, len(known) - 4))
        few = 1 if from_start or random.random() < 0.6 else random.randrange(2, 5)
        length = random.randrange(48, 120)
        stuck = [random.choice(known[good : good + few]) for _ in range(length)]
        return _written(random, family, COUNTED[family], known[:good], stuck)

    return make


def uncounted(family: str) -> Callable[[Random], TextLoop]:
    """Makes lists without a counter that stick to two to four answers after some right ones."""

    def make(random: Random) -> TextLoop:
        known = _known(random)
        good = random.randrange(4, min(17, len(known) - 4))
        few = random.randrange(2, 5)
        stuck = [random.choice(known[good : good + few]) for _ in range(random.randrange(48, 120))]
        return _written(random, family, UNCOUNTED[family], known[:good], stuck)

    return make


_CYCLE_FAMILIES = (
    "quoted",
    "json-compact",
    "json-pretty",
    "table",
    "csv",
    "yaml",
    "links",
    "episode",
    "s01e05",
    "trailing",
)


def cycle(random: Random) -> TextLoop:
    """Two to twelve answers in turn, in a plain numbered list or another dress, some from the first entry on."""
    known = _known(random)
    length = random.randrange(2, 13)
    good = 0 if length > 2 and random.random() < 0.6 else random.randrange(4, 12)
    round_ = (known * 2)[good : good + min(length, len(known) - 4)]
    stuck = round_ * (random.randrange(72, 132) // len(round_))
    family = random.choice((*_CYCLE_FAMILIES, *("plain",) * 10))
    frame = COUNTED.get(family, ("{n}. {x}", "\n"))
    return _written(random, family, frame, known[:good], stuck)


def same_dozen(random: Random) -> TextLoop:
    """A list that passes through the same nine to fourteen entries again and again, not always in the same order."""
    known = _known(random)
    dozen = known[: random.randrange(9, min(15, len(known)))]
    entries: list[str] = []
    while len(entries) < random.randrange(96, 160):
        turn = list(dozen)
        for _ in range(random.randrange(3)):
            at = random.randrange(len(turn) - 1)
            turn[at], turn[at + 1] = turn[at + 1], turn[at]
        if random.random() < 0.3:
            del turn[random.randrange(len(turn))]
        entries += turn
    return _written(random, "plain", ("{n}. {x}", "\n"), (), entries)


FAMILIES: dict[str, tuple[int, Callable[[Random], TextLoop]]] = {
    **{f"dress:{family}": (12, counted(family)) for family in COUNTED},
    **{f"plain:{family}": (8, uncounted(family)) for family in UNCOUNTED},
    "cycle": (120, cycle),
    "same-dozen": (60, same_dozen),
}
