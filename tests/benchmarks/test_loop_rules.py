# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from tests.benchmarks.loop_rules import bare, entries, has_left_a_loop, is_decay, is_verbatim, outcome

COUNTRIES = ["Kenya", "Ghana", "Mali", "Chad", "Togo", "Benin", "Niger", "Egypt", "Gabon", "Congo", "Sudan", "Libya"]


def numbered(answers: list[str], form: str = "{}. {}") -> str:
    return "\n".join(form.format(number, answer) for number, answer in enumerate(answers, start=1))


class TestVerbatim:
    @pytest.mark.parametrize("period", [1, 3, 8, 64])
    def test_four_copies_at_the_end_are_a_loop(self, period: int):
        assert is_verbatim([*range(1000, 1050), *list(range(period)) * max(4, 32 // period + 1)])

    def test_the_last_copy_may_be_cut(self):
        assert is_verbatim([900, *[1, 2, 3, 4, 5, 6, 7, 8, 9] * 4, 1, 2, 3])

    def test_three_and_a_half_copies_are_none(self):
        assert not is_verbatim([900, *[*range(20)] * 3, *range(10)])

    def test_a_short_row_of_dots_is_none(self):
        assert not is_verbatim([1, 2, 3, *[7] * 31])

    def test_a_loop_that_was_left_is_none(self):
        assert not is_verbatim([*[1, 2, 3] * 30, 4, 5])

    def test_counting_up_is_none(self):
        assert not is_verbatim([token for number in range(60) for token in (number, 500, 501)])

    def test_nothing_is_none(self):
        assert not is_verbatim([])


class TestDecay:
    @pytest.mark.parametrize("form", ["{}. {}", "{}) {}", "({}) {}", "- {1} ({0})", "{}: **{}**", "{} - {}", "#{} {}"])
    def test_one_answer_under_running_numbers(self, form: str):
        assert is_decay(numbered(COUNTRIES + ["Niger"] * 8, form), complete=True)

    @pytest.mark.parametrize("bullet", ["-", "*", "•", ""])
    def test_one_answer_under_bullets(self, bullet: str):
        assert is_decay("\n".join(f"{bullet} {answer}" for answer in COUNTRIES + ["Niger"] * 8), complete=True)

    def test_two_answers_in_turn(self):
        assert is_decay(numbered(COUNTRIES + ["Niger", "Nigeria"] * 4), complete=True)

    def test_a_cycle_of_four_under_running_numbers(self):
        assert is_decay(numbered(COUNTRIES + ["Niger", "Mali", "Chad", "Togo"] * 4), complete=True)

    def test_a_comma_list(self):
        assert is_decay("They are " + ", ".join(COUNTRIES + ["Niger"] * 9), complete=True)

    def test_counters_alone_are_empty_answers(self):
        assert is_decay("The moons are " + " ".join(f"({number})" for number in range(3, 20)), complete=True)
        assert is_decay("\n".join(f"{number}." for number in range(3, 20)), complete=True)

    def test_repeated_blocks_of_an_entry_and_its_details(self):
        block = "{}. **Nairobi**\n   - capital of Kenya\n   - on a plateau"
        assert is_decay("\n".join(block.format(number) for number in range(1, 6)), complete=True)

    def test_an_entry_that_was_cut_is_not_judged(self):
        assert is_decay(numbered([*COUNTRIES, *["Niger"] * 8, "Nig"]), complete=False)
        assert not is_decay(numbered([*COUNTRIES, *["Niger"] * 8, "Nigeria"]), complete=True)

    def test_four_long_entries_are_enough(self):
        entry = "Golden retriever: a friendly and loyal dog that likes to swim and to run"
        assert is_decay(numbered([*COUNTRIES, *[entry] * 4]), complete=True)
        assert not is_decay(numbered([*COUNTRIES, *[entry] * 3]), complete=True)

    def test_labels_with_nothing_but_a_counter(self):
        assert is_decay("1.\n" + "\n".join(f"A: {number}." for number in range(1, 12)), complete=True)

    def test_running_years(self):
        lines = [f"{year}-{year + 10}: Cold War" for year in range(1900, 2000, 10)]
        assert is_decay("\n".join(lines), complete=True)

    def test_six_copies_of_a_short_entry_are_too_few(self):
        assert not is_decay(numbered(COUNTRIES[:-6] + ["Niger"] * 6), complete=True)

    def test_a_loop_that_was_left_is_none(self):
        assert not is_decay(numbered([*["Niger"] * 9, *COUNTRIES[:3]]), complete=True)

    @pytest.mark.parametrize(
        "text",
        [
            numbered(COUNTRIES),
            ", ".join(COUNTRIES * 2),
            ", ".join(str(number) for number in range(1, 60)),
            numbered([str(number) for number in range(2, 60, 2)]),
            "\n".join(str(number) for number in range(1, 40)),
            "\n".join(f"{year}: the year in which thing {year % 7} was found" for year in range(1900, 1907)),
            ", ".join(f"Apollo {number}" for number in range(1, 18)),
            numbered([f"Chapter {number}" for number in range(1, 18)]),
            "1.5\n2.5\n3.5\n4.5\n5.5\n6.5\n7.5\n8.5\n9.5",
            "A sentence, with some commas, that goes on, and on, and ends. " * 1,
            "",
            "\n\n",
        ],
    )
    def test_healthy_lists_are_none(self, text: str):
        assert not is_decay(text, complete=True)


def test_a_loop_of_tokens_is_named_verbatim_even_if_it_is_also_a_decay():
    assert outcome([5, 6] * 40, "- Niger\n" * 40, complete=False) == "verbatim"


def test_outcome_of_a_decay():
    assert outcome([*range(200)], numbered(["Niger"] * 20), complete=False) == "decay"


def test_a_loop_that_was_left_is_seen_as_one():
    tokens = [*range(200)]
    assert has_left_a_loop(tokens, numbered(["Niger"] * 20) + "\n\nI hope this helps!", complete=True)
    assert has_left_a_loop([*[1, 2] * 30, *range(10, 200)], "", complete=True)
    assert not has_left_a_loop(tokens, numbered(COUNTRIES), complete=True)


def test_outcome_of_a_healthy_list():
    assert outcome([*range(200)], numbered(COUNTRIES), complete=True) == "none"


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("12. **Lake Chad** (12)", "lake chad"),
        ("- 3) Kenya", "kenya"),
        ("1964 - Paris.", "paris"),
        ("(7)", ""),
        ("7", "7"),
        ("7.", ""),
        ("A: 7.", ""),
        ("B. Kenya", "kenya"),
        ("1914-1918: Kenya", "kenya"),
        ("and Togo", "togo"),
        ("3.5 metres", "35 metres"),
        ("Apollo 11", "apollo 11"),
    ],
)
def test_bare(entry: str, expected: str):
    assert bare(entry) == expected


def test_entries_of_a_sentence_stay_one():
    assert entries("Kenya, Ghana and Mali are countries.") == ["kenya ghana and mali are countries"]


def test_entries_of_inline_numbers():
    text = " ".join(f"{number}. {answer}" for number, answer in enumerate(COUNTRIES, start=1))
    assert entries(text) == [answer.lower() for answer in COUNTRIES]
