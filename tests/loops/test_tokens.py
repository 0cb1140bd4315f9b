# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: RUF001  (Digits of other scripts.)
"""The table of a tokenizer, and the units that its tokens are cut into."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_surgery.loops import TokenTable
from vllm_surgery.loops.detectors import Scanner
from vllm_surgery.loops.kernels import integers, readable
from vllm_surgery.loops.pieces import pieces_of
from vllm_surgery.loops.scanner import BREAK, MARK, NUMBER, WORD, word_hash

if TYPE_CHECKING:
    from pathlib import Path


class Fake:
    """As much of a tokenizer as is asked of one."""

    def __init__(self, tokens: list[str | bytes | None], special: tuple[int, ...] = ()) -> None:
        self._tokens = tokens
        self.all_special_ids = special

    def __len__(self) -> int:
        return len(self._tokens)

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str | bytes | None]:
        return [self._tokens[token] for token in ids]


def test_byte_level_tokens_are_decoded() -> None:
    found = pieces_of(Fake(["Ġthe", "Ċ", "Ã©", "Ã", "<|added 日|>"]))
    assert found == [b" the", b"\n", "é".encode(), b"\xc3", "<|added 日|>".encode()]


def test_sentence_piece_tokens_are_decoded() -> None:
    assert pieces_of(Fake(["▁the", "<0x0A>", "é", "<0xC3>"])) == [b" the", b"\n", "é".encode(), b"\xc3"]


def test_tokens_of_bytes_are_taken() -> None:
    assert pieces_of(Fake([b" the", b"\n", b"\xc3"])) == [b" the", b"\n", b"\xc3"]


def test_special_and_missing_tokens_have_no_text() -> None:
    assert pieces_of(Fake(["<s>", None, "▁a"], special=(0,))) == [b"", b"", b" a"]


def test_the_pieces_of_the_demo_model_add_up_to_its_texts(demo_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_model)
    text = "1. Pikachu\n2. Mr. Mime (1996)\n\n\tif x == 3:  # 25 %\n١٢ 東京\n"
    assert TokenTable.from_tokenizer(tokenizer).text(tokenizer.encode(text)) == text


def units_of(pieces: list[str] | list[bytes]) -> list[tuple[int, int, int]]:
    """Kind, hash and value of each unit."""
    scanner = Scanner(TokenTable(pieces))
    found = []
    for units, count in [*scanner.read(integers(range(len(pieces)))), scanner.finish()]:
        found += [(int(unit.kind), int(unit.said), int(unit.value)) for unit in readable(units)[:count]]
    return found


@given(text=st.text(max_size=40), cuts=st.lists(st.integers(0, 160), max_size=6))
def test_units_do_not_depend_on_how_a_text_is_cut(text: str, cuts: list[int]) -> None:
    data = text.encode()
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    assert units_of([data[a:b] for a, b in pairwise(places)]) == units_of([data])


@pytest.mark.parametrize(("text", "value"), [("17", 17), ("٢٠", 20), ("０7", 7), ("१२", 12), ("123456789", -1)])
def test_digits_of_any_script_are_numbers(text: str, value: int) -> None:
    assert [(kind, value) for kind, _, value in units_of([text])] == [(NUMBER, value)]


def test_words_numbers_signs_and_line_ends_are_told_apart() -> None:
    assert [kind for kind, _, _ in units_of(["S01E05 - ", "Résumé,\n東京"])] == [
        WORD, NUMBER, WORD, NUMBER, MARK, WORD, MARK, BREAK, WORD, WORD,
    ]  # fmt: skip


def test_case_does_not_count() -> None:
    assert [said for _, said, _ in units_of(["DakoTA"])] == [word_hash("dakota")]


def test_a_sign_that_comes_many_times_in_a_row_is_one() -> None:
    assert len(units_of(["=====", "====="])) == 1


@pytest.mark.parametrize("data", [b"\xc3", b"a\xff\xfeb", b"\xe2\x82", b"\xf0\x9f\x98\x80\x80"])
def test_bytes_that_are_no_text_are_taken(data: bytes) -> None:
    assert len(units_of([data])) <= len(data)
