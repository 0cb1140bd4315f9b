# SPDX-License-Identifier: Apache-2.0
"""Text as tokens: words with the space before them, digits, signs, ends of lines."""

from __future__ import annotations

from vllm_surgery.loops import Ending, Loop, detect
from vllm_surgery.loops.answers import of_words


def loops_of(text: str, ending: Ending = "unknown") -> dict[str, Loop]:
    """The first loop of each kind in a text that ended so."""
    answer = of_words(text)
    return {loop.kind: loop for loop in reversed(detect(answer.tokens, answer.table, ending=ending))}


def start_of(text: str, loop: Loop) -> str:
    """The text from a loop's onset on."""
    answer = of_words(text)
    return text[answer.offsets[loop.onset] :]
