# SPDX-License-Identifier: Apache-2.0
"""Short lists: right in any form, wrong for any flaw."""

from __future__ import annotations

import pytest

from vllm_surgery.evaluation.probes import load_probes
from vllm_surgery.evaluation.tasks.short_lists import ShortList

SEASONS = ShortList((("spring",), ("summer",), ("autumn", "fall"), ("winter",)), 4)
STATES = ShortList((("alabama",), ("alaska",), ("virginia",), ("west virginia",), ("new york", "ny")), 5)
COLORS = ShortList((("red",), ("blue",), ("green",), ("pink",)), 3)
VOWELS = ShortList((("a",), ("e",), ("i",), ("o",), ("u",)), 5, ("y",))


@pytest.mark.parametrize(
    "text",
    [
        "1. Spring\n2. Summer\n3. Fall\n4. Winter",
        "The four seasons are:\n\n- **Spring**: March to May\n- Summer\n- Autumn\n- Winter\n\nEach has its charm.",
        "The four seasons are spring, summer, autumn, and winter.",
        "spring, summer, autumn and winter",
        "The four seasons are: Spring, Summer, Fall and Winter. I hope this helps!",
        "Spring\nSummer\nFall\nWinter",
        "They are spring, summer, fall, and winter. In spring the days grow longer, and in winter they don't.",
    ],
)
def test_right_in_any_form(text: str) -> None:
    assert SEASONS.is_right(text, complete=True)


@pytest.mark.parametrize(
    "text",
    [
        "1. Spring\n2. Summer\n3. Fall",
        "1. Spring\n2. Summer\n3. Fall\n4. Winter\n5. Winter",
        "1. Spring\n2. Summer\n3. Fall\n4. Winter\n5. Monsoon",
        "Spring, summer, autumn, winter and monsoon.",
        "",
    ],
)
def test_wrong(text: str) -> None:
    assert not SEASONS.is_right(text, complete=True)


def test_an_answer_that_was_cut_is_wrong() -> None:
    assert not SEASONS.is_right("1. Spring\n2. Summer\n3. Fall\n4. Winter", complete=False)


def test_choosing_some_of_many() -> None:
    assert COLORS.is_right("Red, green and pink.", complete=True)
    assert not COLORS.is_right("Red, green, blue and pink.", complete=True)


def test_optional_items() -> None:
    assert VOWELS.is_right("The vowels are A, E, I, O, U, and sometimes Y.", complete=True)
    assert VOWELS.is_right("a, e, i, o, u", complete=True)
    assert not VOWELS.is_right("a, e, i, o, u, w", complete=True)


def test_the_data_file() -> None:
    lists = [probe.short_list() for probe in load_probes("short").probes]
    assert len(lists) == 16
    assert all(0 < one.choose <= len(one.items) for one in lists)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("1. Alabama\n2. Alaska\n3. Alabama\n4. Alabama", {0, 1}),
        ("1. Alaska: it is larger than Alabama\n2. West Virginia: east of Virginia", {1, 3}),
        ("alabama, alaska, texas, utah, ohio, iowa, idaho, maine, nevada, NY", {0, 1, 4}),
        ('["Alabama", "Alaska", "A", "B", "C", "D", "E", "F", "G", "Virginia"]', {0, 1, 2}),
        ("| Number | Name |\n| --- | --- |\n| 1 | New York |", {4}),
        ("Alabamas and other things", set()),
    ],
)
def test_right_entries_of_a_long_list_count_once(text: str, named: set[int]) -> None:
    assert STATES.named_in(text) == named
