# SPDX-License-Identifier: Apache-2.0
"""Signs and words that detectors know by their place in lists and sentences."""

from __future__ import annotations

from vllm_surgery.loops.scanner import word_hash


def _codes(characters: str) -> tuple[int, ...]:
    return tuple(map(ord, characters))


def words(text: str) -> tuple[int, ...]:
    """The hashes of some words."""
    return tuple(word_hash(word) for word in text.split())


POINTS = _codes(".):]、．")  # noqa: RUF001
"""Close a list marker after its number."""

BULLETS = _codes("-*+•–—·→▪●◦‣")  # noqa: RUF001
OPENINGS = _codes("([#")
"""Stand before a number that counts."""

CLOSINGS = _codes(")]")
RECORD_SIGNS = _codes("{}<>=|\\")
"""Signs of data formats and code."""

TIME_SIGNS = _codes(":-")
"""Join the numbers of 12:30 and of 2031-05-17."""

PIPE = ord("|")
"""One of them alone is none: "Annual report | page 7"."""

COMMAS = _codes(",;、，；")  # noqa: RUF001
"""Part the pieces of a line."""

SPACED_COMMAS = _codes("/|")
"""Part them where they stand between spaces."""

SENTENCE_ENDS = _codes(".!?…。！？")  # noqa: RUF001
WIDE_ENDS = _codes("。！？")  # noqa: RUF001
"""End a sentence even without a space."""

CLOSERS = _codes(")]}`")
"""Close a list at the beginning of a line."""

CHOICES = words("true false none null nan na ok pass fail on off done x ditto same idem dito ibid todo")
"""Entries that answer a closed question, are a value, or refer to another: healthy lists have them again and again."""

AND_OR = words("and or und oder et ou y o")

VALUES = words("true false none null nan na ok pass fail on off done todo")
"""Of these the cells of tables."""

QUOTES = _codes("\"'“”„«»")
