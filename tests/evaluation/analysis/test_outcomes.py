# SPDX-License-Identifier: Apache-2.0
"""What one answer counts for, and what many do; and lines of a file that a kill may have cut."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.examples import refusal
from vllm_surgery.errors import UsageError
from vllm_surgery.evaluation.analysis.outcomes import Rates, ever_loops, loops, terminal_kinds, until_loop
from vllm_surgery.evaluation.records import FoundLoop, Key, Record, append_lines, read_lines
from vllm_surgery.evaluation.tasks.list_entries import distinct_entries, form

if TYPE_CHECKING:
    from pathlib import Path

KEY = Key("unpatched", "greedy", "paper", "firefly", 0)


def record(*found: tuple[str, str, int], text: str = "", finish: str = "length") -> Record:
    """An answer of 100 tokens with loops of these kinds, outcomes and onsets."""
    made = [FoundLoop(kind, onset, 4, 5.0, onset + 20, outcome, 0, 0) for kind, outcome, onset in found]
    return Record(KEY, None, "List them.", {}, text, list(range(100)), finish, made)


def test_an_answer_that_left_its_loop_doesnt_end_in_one() -> None:
    left = record(("verbatim", "escaped", 10))
    assert (loops(left), ever_loops(left), until_loop(left)) == (False, True, (10, True))


def test_an_answer_may_end_in_loops_of_two_kinds() -> None:
    both = record(("verbatim", "terminal", 40), ("decay", "terminal", 30), ("doom", "escaped", 5))
    assert terminal_kinds(both) == ["decay", "verbatim"]
    assert Rates.of([both]).terminal == {"verbatim": 1, "decay": 1, "collapse": 0, "doom": 0}


def test_figures_of_many() -> None:
    answers = [
        record(("verbatim", "terminal", 40), text="1. a\n2. b"),
        record(("decay", "escaped", 10), text="1. a\n2. a\n3. b\n4. c"),
        record(text="- a", finish="stop"),
    ]
    rates = Rates.of(answers)
    assert (rates.answers, rates.escaped, rates.cut, rates.tokens, rates.wasted) == (3, 1, 2, 300, 60)
    assert (rates.looped.value, rates.ever.value) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert rates.entries == 2


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1. Orion\n2. Lyra\n3. orion\n", 2),
        ("- **Orion**\n* Orion!\n", 1),
        ("Orion, Lyra, Ara, Ara, Lynx, Ara, Vela, Orion, Pavo, Leo", 7),
        ("(1) 2\n(2) 4\n(3) 6", 3),
        ("Apollo 11\nApollo 12", 2),
        ("", 0),
    ],
)
def test_entries_are_told_apart_by_their_words(text: str, count: int) -> None:
    assert distinct_entries(text) == count


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Here:\n1. a\n2) b", "numbered"),
        ("Here:\n\n- a\n* b", "bulleted"),
        ("a\nb\nc", "plain"),
        ("a, b and c", "plain"),
        ("", "plain"),
    ],
)
def test_the_form_of_a_list(text: str, expected: str) -> None:
    assert form(text) == expected


def test_a_record_survives_the_file(tmp_path: Path) -> None:
    one = record(("decay", "terminal", 3), text="\u2028 line \n é")
    append_lines(tmp_path / "a", [one.to_data(), one.to_data()])
    assert [Record.from_data(line) for line in read_lines(tmp_path / "a")] == [one, one]


@pytest.mark.parametrize("whole", [[], [{"a": 1}]])
@pytest.mark.parametrize("part", [b"{", b'{"a": "\xc3'])
def test_half_a_line_is_cut_off_by_the_next_one_that_is_written(
    tmp_path: Path, whole: list[dict[str, int]], part: bytes
) -> None:
    file = tmp_path / "a"
    append_lines(file, whole)
    with file.open("ab") as stream:
        stream.write(part)
    assert read_lines(file) == whole
    append_lines(file, [{"a": 2}])
    assert read_lines(file) == [*whole, {"a": 2}]


def test_half_a_line_is_left_alone_by_readers_since_somebody_may_be_writing_it(tmp_path: Path) -> None:
    file = tmp_path / "a"
    append_lines(file, [{"a": 1}])
    with file.open("ab", buffering=0) as stream:
        stream.write(b'{"a": ')
        assert read_lines(file) == [{"a": 1}]
        stream.write(b"2}\n")
    assert read_lines(file) == [{"a": 1}, {"a": 2}]


def test_another_files_lines_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("hello\n")
    assert "not a file of a trial" in refusal(lambda: read_lines(tmp_path / "a"), UsageError)
