# SPDX-License-Identifier: Apache-2.0
"""Text as tokens: words with the space before them, digits, signs, ends of lines."""

from __future__ import annotations

from vllm_surgery.loops import Loop, detect
from vllm_surgery.loops.answers import read_answers


def loops_of(text: str) -> dict[str, Loop]:
    """The first loop of each kind in a text."""
    (answer,) = read_answers(text, "test")
    return {loop.kind: loop for loop in reversed(detect(answer.tokens, answer.table))}


def start_of(text: str, loop: Loop) -> str:
    """The text from a loop's onset on."""
    (answer,) = read_answers(text, "test")
    return text[answer.offsets[loop.onset] :]
