# SPDX-License-Identifier: Apache-2.0
"""Texts shaped after public reports: loops in many dresses, and sound work that looks similar."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.corpora.make_real import DATA
from vllm_surgery.loops import detect
from vllm_surgery.loops.answers import of_text

if TYPE_CHECKING:
    from pathlib import Path

CASES = [json.loads(line) for line in (DATA / "cases.jsonl").read_text("utf-8").split("\n") if line]
NEEDS_A_TOKENIZER = ("loop-20-arabic-digits", "ok-16-base64-run")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_a_tokenizers_tokens_show_what_a_reader_sees(case: dict[str, Any], demo_model: Path) -> None:
    assert is_right(case, str(demo_model))


@pytest.mark.parametrize(
    "case", [case for case in CASES if case["id"] not in NEEDS_A_TOKENIZER], ids=lambda case: case["id"]
)
def test_words_show_what_a_reader_sees(case: dict[str, Any]) -> None:
    assert is_right(case, None)


def is_right(case: dict[str, Any], tokenizer: str | None) -> bool:
    """True if the expected kind is found, or nothing where nothing is expected. Nobody says how the answer ended."""
    answer = of_text(case["text"], folder=tokenizer)
    kinds = {loop.kind for loop in detect(answer.tokens, answer.table)}
    if not case["expect"]:
        return not kinds
    return bool(kinds) if case["expect"] == "any" else case["expect"] in kinds
