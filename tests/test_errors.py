# SPDX-License-Identifier: Apache-2.0
"""Errors: one line each, and whole again in another process."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_surgery.errors import MismatchError, PatchError, SurgeryError, UsageError, one_line


@given(st.text(st.characters(), max_size=600))
def test_one_line_is_one_printable_line_whatever_the_text(text: str) -> None:
    line = one_line(text)

    assert len(line.splitlines()) <= 1
    assert line.isprintable()


def test_one_line_spells_out_control_characters() -> None:
    assert one_line("a\nb\x00c\u202ed\ud800") == r"a b\x00c\u202ed\ud800"


def test_one_line_is_cut_at_its_limit() -> None:
    assert one_line("abcdef", limit=4) == "abc…"


def test_a_patch_error_says_file_place_and_reason() -> None:
    assert str(PatchError("p.yaml", "edits[0]", "is wrong")) == "p.yaml: edits[0]: is wrong"


def test_a_patch_error_without_a_place_says_file_and_reason() -> None:
    assert str(PatchError("p.yaml", "", "is wrong")) == "p.yaml: is wrong"


def test_a_hostile_place_never_cuts_the_reason_away() -> None:
    assert str(PatchError("p.yaml", "k" * 10_000, "is wrong")).endswith("…: is wrong")


@pytest.mark.parametrize("kind", [PatchError, MismatchError])
def test_a_patch_error_survives_the_way_to_another_process(kind: type[PatchError]) -> None:
    error = kind("p.yaml", "edits[0]", "is wrong")

    copy = pickle.loads(pickle.dumps(error))

    assert (type(copy), copy.source, copy.place, copy.detail, str(copy)) == (
        kind, "p.yaml", "edits[0]", "is wrong", str(error),
    )  # fmt: skip


def test_other_errors_survive_the_way_to_another_process() -> None:
    error = UsageError("no such file")

    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_every_error_is_a_surgery_error() -> None:
    assert issubclass(MismatchError, PatchError)
    assert issubclass(PatchError, SurgeryError)
