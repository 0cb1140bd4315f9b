# SPDX-License-Identifier: Apache-2.0
"""Decay loops: lists that have collapsed onto few answers, and lists that haven't."""

from __future__ import annotations

from random import Random

import pytest

from tests.loops.words import loops_of, start_of

KNOWN = ("Ditto", "Mew", "Onix", "Muk", "Abra", "Eevee", "Golem")
STUCK = ("Pikachu", "Mr. Mime", "Nidoran")

FRAMES = {
    "numbers": "{number}. {entry}\n",
    "brackets": "({number}) {entry}\n",
    "bare brackets": "{number}) {entry}\n",
    "colons": "{number}: {entry}\n",
    "hashes": "#{number} {entry}\n",
    "bold": "{number}. **{entry}**\n",
    "dashes": "- {entry}\n",
    "stars": "* {entry}\n",
    "blank lines": "{number}. {entry}\n\n",
    "years": "{number}. {entry} ({year})\n",
    "one line with numbers": "{number}. {entry} ",
    "one line with commas": "{entry}, ",
}


def listed(frame: str, entries: list[str], first: int = 1) -> str:
    return "".join(
        frame.format(number=number, entry=entry, year=1900 + number) for number, entry in enumerate(entries, first)
    )


@pytest.mark.parametrize("answers", [1, 2])
@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_a_list_that_collapses(frame: str, answers: int) -> None:
    random = Random(f"{frame} {answers}")
    stuck = [random.choice(STUCK[:answers]) for _ in range(40)]
    start = listed(frame, list(KNOWN))
    text = "A list: " + ("\n" if frame.endswith("\n") else "") + start + listed(frame, stuck, len(KNOWN) + 1)
    loop = loops_of(text)["decay"]
    assert loop.outcome == "terminal"
    assert start_of(text, loop).strip() == text[text.index(start) + len(start) :].strip()


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_with_more_answers_the_onset_may_come_some_entries_late(frame: str) -> None:
    random = Random(frame)
    stuck = [random.choice(STUCK) for _ in range(40)]
    start = listed(frame, list(KNOWN))
    text = start + listed(frame, stuck, len(KNOWN) + 1)
    loop = loops_of(text)["decay"]
    assert loop.outcome == "terminal"
    assert (
        0 <= len(text) - len(start) - len(start_of(text, loop).lstrip()) < len(listed(frame, stuck[:8], len(KNOWN) + 1))
    )


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_a_list_that_goes_on(frame: str) -> None:
    entries = [f"{first}{last}" for first in ("Al", "Bo", "Ce", "Du") for last in ("dan", "fer", "kin", "mos", "tur")]
    assert "decay" not in loops_of(listed(frame, entries))


def test_a_list_that_recovers_is_escaped() -> None:
    frame = FRAMES["numbers"]
    text = listed(frame, [*KNOWN, *["Pikachu"] * 12, *(name + "s" for name in KNOWN)])
    loop = loops_of(text)["decay"]
    assert (loop.outcome, loop.copies) == ("escaped", 12)


def test_a_closing_sentence_is_not_a_cut_entry() -> None:
    text = listed(FRAMES["numbers"], [*KNOWN, *["Pikachu"] * 12])
    assert loops_of(text + "\nI hope that this helps you.")["decay"].outcome == "escaped"
    assert loops_of(text + "20. Pika")["decay"].outcome == "terminal"


def test_long_entries_collapse_sooner() -> None:
    entry = "the longest river that flows from the mountains in the north to the sea in the south of the land"
    text = listed(FRAMES["numbers"], [entry] * 5)
    assert loops_of(text)["decay"].onset == 0


def test_case_and_decoration_make_no_new_entry() -> None:
    variants = ["Pikachu", "**pikachu**", "PIKACHU", "Pikachu."]
    assert loops_of(listed(FRAMES["numbers"], [*KNOWN, *variants * 3]))["decay"].copies == 12


def test_lines_without_markers_need_more() -> None:
    random = Random(1)
    lines = [name + "\n" for name in KNOWN] + [random.choice(STUCK[:2]) + "\n" for _ in range(60)]
    assert "decay" not in loops_of("".join(lines[:24]))
    assert loops_of("".join(lines))["decay"].outcome == "terminal"


def test_numbers_within_entries_may_count() -> None:
    random = Random(1)
    assert loops_of("".join(f"- Helium: {random.randrange(90)}\n" for _ in range(60)))["decay"].onset == 0


DRESSES = {
    "JSON in a line": ('{{"number":{n},"name":"{x}"}},', "decay"),
    "JSON in lines": ('  {{\n    "id": {n},\n    "name": "{x}"\n  }},\n', "decay"),
    "YAML": ("  - id: {n}\n    name: {x}\n", "decay"),
    "XML": ('<bird id="{n}">{x}</bird>\n', "decay"),
    "CSV": ("{n},{x},common\n", "decay"),
    "table": ("| {n} | {x} | common |\n", "decay"),
    "quotes": ('{n}. "{x}"\n', "decay"),
    "episodes": ('Season 1, Episode {n}: "{x}"\n', "decay"),
    "S01E05": ("S01E{n:02d} - {x}\n", "decay"),
    "1x05": ("1x{n:02d} {x}\n", "decay"),
    "atomic numbers": ("Atomic number {n}: {x}\n", "decay"),
    "years in a line": ("20{n:02d} {x}, ", "decay"),
    "links": ("- [{x}](https://example.org/{n})\n", "decay"),
    "headings": ("### {n}. {x}\n\n{x} is known for what it is.\n\n", "decay"),
    "trailing numbers": ("{x} ({n})\n", "decay"),
    "Arabic digits": ("{a}. {x}\n", "decay"),
}
ARABIC = str.maketrans("0123456789", "٠١٢٣٤٥٦٧٨٩")


def dressed(frame: str, entries: list[str]) -> str:
    return "".join(frame.format(n=n, a=str(n).translate(ARABIC), x=x) for n, x in enumerate(entries, 1))


@pytest.mark.parametrize(("frame", "kind"), DRESSES.values(), ids=DRESSES)
def test_a_list_collapses_in_any_dress(frame: str, kind: str) -> None:
    sound = [f"{first}{last}" for first in ("Al", "Bo", "Ce") for last in ("dan", "fer", "kin", "mos")]

    assert kind not in loops_of(dressed(frame, [*sound, *("Du" + name for name in sound)]))
    assert loops_of(dressed(frame, [*sound, *["Knot"] * 40]))[kind].outcome == "terminal"


@pytest.mark.parametrize("answers", [2, 5, 8, 12])
def test_a_list_that_goes_round_collapses(answers: int) -> None:
    names = [f"{first}{last}" for first in ("Al", "Bo", "Ce") for last in ("dan", "fer", "kin", "mos")]

    assert "decay" in loops_of(listed(FRAMES["numbers"], [names[n % answers] for n in range(120)]))


@pytest.mark.parametrize("answers", [5, 6, 7])
def test_a_list_that_goes_round_among_five_or_more_collapses_though_it_closes_by_itself(answers: int) -> None:
    text = (
        listed(FRAMES["numbers"], [(*KNOWN[1:], *STUCK)[n % answers] for n in range(60)]) + "\nThese are all of them."
    )

    assert "decay" in loops_of(text, "stop")


@pytest.mark.parametrize("frame", ["numbers", "bold", "dashes", "blank lines", "years"])
@pytest.mark.parametrize("before", [["Monarch"], ["Monarch", "Ladybug", "Monarch"], ["Monarch", "Swift", "Monarch"]])
def test_a_list_that_settles_on_one_short_answer_collapses_though_it_closes_by_itself(
    frame: str, before: list[str]
) -> None:
    def settled(entries: int) -> str:
        return listed(FRAMES[frame], [*before, *["Ladybug"] * entries]) + "\nI hope this helps!"

    loop = loops_of(settled(40), "stop")["decay"]
    assert start_of(settled(40), loop).lstrip() == settled(40)[len(listed(FRAMES[frame], before)) :].lstrip()


@pytest.mark.parametrize("before", [["Monarch"], ["Monarch", "Ladybug", "Monarch"]])
def test_a_short_run_of_one_short_answer_is_no_collapse(before: list[str]) -> None:
    assert "decay" not in loops_of(listed(FRAMES["numbers"], [*before, *["Ladybug"] * 30]), "stop")


def test_a_label_that_most_items_get_does_not_settle() -> None:
    labels = [*["not spam"] * 3, "spam", *["not spam"] * 40]

    assert loops_of(listed(FRAMES["numbers"], labels), "stop") == {}


def test_numbers_that_count_are_no_answer_that_a_list_settles_on() -> None:
    missions = "".join(f"{n}. Apollo {n + 4}\n" for n in range(1, 60))

    assert "decay" not in loops_of("Missions: 1. Launches\n" + missions, "stop")


@pytest.mark.parametrize("era", ["{} BCE", "{}-{} CE", "{} AD"])
def test_years_of_an_era_in_brackets_are_no_part_of_an_entry(era: str) -> None:
    entries = [f"Qing Qing ({era.format(1900 + n, 1901 + n)})" for n in range(40)]
    text = listed(FRAMES["numbers"], [*KNOWN, *entries])

    assert start_of(text, loops_of(text)["decay"]).startswith(f"8. {entries[0]}")
    assert "decay" not in loops_of("".join(f">>> Decimal('1.{n}E+{n}')\n{n}.5\n" for n in range(20, 60)))


def test_one_letter_again_and_again_is_a_loop_where_the_answer_was_cut() -> None:
    text = listed(FRAMES["numbers"], [*"ABCD", *"Z" * 70])

    assert "decay" in loops_of(text, "cut")
    assert "decay" not in loops_of(text, "stop")


def test_a_block_with_a_counter_collapses() -> None:
    assert "decay" in loops_of(
        "".join(f"Annual Report - page {n}\nConfidential. Hill & Sons.\n\n" for n in range(3, 42))
    )


def test_one_answer_from_the_start_is_a_loop_only_where_the_answer_was_cut() -> None:
    text = listed(FRAMES["numbers"], ["spam"] * 40)

    assert "decay" not in loops_of(text, "unknown")
    assert "decay" not in loops_of(text, "stop")
    assert loops_of(text, "cut")["decay"].evidence == "ending"


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "frame", ["{n}. {x}\n", "Item {n}: {x}\n", '{{"id": {n}, "label": "{x}"}}\n', "| {n} | {x} |\n", "{n},{x}\n"]
)
def test_labels_are_no_loop(frame: str, seed: int) -> None:
    random = Random(seed)
    labels = random.choices(["billing", "technical", "account", "shipping", "not spam"], [5, 3, 2, 1, 1], k=60)

    assert loops_of(dressed(frame, labels)) == {}


HEALTHY = {
    "multiplication table": "".join(f"{a} x {b} = {a * b}\n" for a in range(1, 11) for b in range(1, 11)),
    "numbers": "".join(f"{number}\n" for number in range(200)),
    "primes": ", ".join(str(n) for n in range(2, 400) if all(n % d for d in range(2, n))),
    "SQL": "".join(f"INSERT INTO pets (id, kind) VALUES ({n}, 'cat');\n" for n in range(60)),
    "CSV": "".join(f"{n},male,yes\n" for n in range(60)),
    "JSON": "[\n" + "".join('  {\n    "kind": "cat",\n    "age": 3\n  },\n' for _ in range(20)) + "]\n",
    "log": "".join(f"2026-11-24 12:{n:02}:00 INFO worker: heartbeat received\n" for n in range(60)),
    "answer key": "".join(f"{n}. {'ABCD'[n * 7 % 4]}\n" for n in range(60)),
    "yes and no": "".join(f"{n}. {['Yes', 'No'][n * 7 % 3 % 2]}\n" for n in range(60)),
    "zeros": "[" + ", ".join("0" * 60) + "]",
    "nulls": "[" + ", ".join(["null"] * 60) + "]",
    "knitting": "".join(f"Row {n}: {('knit', 'purl')[n % 2]} all stitches.\n" for n in range(1, 61)) + "Cast off.",
    "doses": "".join(f"Day {n}: take {40 - n // 7 * 10} mg in the morning\n" for n in range(28)) + "Then stop.",
    "ditto": "".join(f"{n}. {('as above', KNOWN[n // 6])[n % 6 == 0]}\n" for n in range(42)),
    "reviews": "".join(
        f"### {a}{b}.py\nNo secrets found. No unsafe calls found.\n\n" for a in "abcdef" for b in "ghijkl"
    ),
    "code": "    return None\n}\n" * 4 + "    else:\n        pass\n" * 6,
}


@pytest.mark.parametrize("text", HEALTHY.values(), ids=HEALTHY)
def test_healthy_texts_do_not_decay(text: str) -> None:
    assert "decay" not in loops_of(text)
