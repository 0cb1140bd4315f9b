# SPDX-License-Identifier: Apache-2.0
"""The table of a tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_surgery.loops import TokenTable
from vllm_surgery.loops.pieces import pieces_of
from vllm_surgery.loops.tokens import COLUMNS, MODULUS, content_hash

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
    assert pieces_of(Fake(["Ġthe", "Ċ", "Ã©", "Ã", "<|added 日|>"])) == [" the", "\n", "é", "\ufffd", "<|added 日|>"]


def test_sentence_piece_tokens_are_decoded() -> None:
    assert pieces_of(Fake(["▁the", "<0x0A>", "é", "<0xC3>"])) == [" the", "\n", "é", "\ufffd"]


def test_tokens_of_bytes_are_decoded() -> None:
    assert pieces_of(Fake([b" the", b"\n", b"\xc3"])) == [" the", "\n", "\ufffd"]


def test_special_and_missing_tokens_have_no_text() -> None:
    assert pieces_of(Fake(["<s>", None, "▁a"], special=(0,))) == ["", "", " a"]


def test_the_pieces_of_the_demo_model_add_up_to_its_texts(demo_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_model)
    text = "1. Pikachu\n2. Mr. Mime (1996)\n\n\tif x == 3:  # 25 %\n"
    assert TokenTable.from_tokenizer(tokenizer).text(tokenizer.encode(text)) == text


@given(pieces=st.lists(st.text(max_size=8), max_size=6))
def test_the_hash_of_a_text_does_not_depend_on_how_it_is_cut(pieces: list[str]) -> None:
    table = TokenTable(pieces)
    value = 0
    for index in range(len(pieces)):
        _, said, power = (int(number) for number in table.columns[index * COLUMNS : (index + 1) * COLUMNS])
        value = (value * power + said) % MODULUS
    assert value == content_hash("".join(pieces)) or any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("variant", [" South Dakota", "south dakota", "**South** Dakota!", "SouthDakota"])
def test_case_space_and_signs_do_not_count(variant: str) -> None:
    assert content_hash(variant) == content_hash("South Dakota")
