# SPDX-License-Identifier: Apache-2.0
"""Patch sets: several files at once, in any order, no unit twice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import patch_data, refusal, scale, zero
from vllm_surgery.errors import PatchError, UsageError
from vllm_surgery.patch.format import Patch
from vllm_surgery.patch.patch_set import NO_PATCH, PatchSet, SourcedPatch

if TYPE_CHECKING:
    from pathlib import Path


def member(source: str, *edits: object, **changes: object) -> SourcedPatch:
    return SourcedPatch(source, Patch.from_data(patch_data(*edits, **changes), source))


def test_no_patch_is_none() -> None:
    assert PatchSet().id == NO_PATCH == "none"


def test_one_patch_gives_the_set_its_id() -> None:
    one = member("a.yaml")

    assert PatchSet((one,)).id == one.patch.id


@given(st.permutations([member("p", zero({str(layer): [1]}), name=f"p{layer}") for layer in range(5)]))
def test_the_order_of_files_does_not_matter(members: list[SourcedPatch]) -> None:
    assert PatchSet(tuple(members)).id == PatchSet(tuple(sorted(members, key=lambda item: item.patch.name))).id


def test_the_id_names_each_patch() -> None:
    one, other = member("a", zero({"0": [1]}), name="b"), member("b", zero({"0": [2]}), name="a")

    assert PatchSet((one, other)).id == f"{other.patch.id}+{one.patch.id}"


@pytest.mark.parametrize(
    ("first", "second", "unit"),
    [
        (zero({"1": [2]}), scale(3, {"1": [2]}), "neurons 2 of layer 1"),
        (zero({"1": ["0-9"]}), zero({"1": ["9-12"]}), "neurons 9 of layer 1"),
        (zero({"1": "all"}), zero({"1": [7]}), "neurons 7 of layer 1"),
        (zero({"1": [7]}), zero({"1": "all"}), "neurons 7 of layer 1"),
        (zero({"3": [7]}, "experts"), {"op": "mask", "experts": {"3": [7]}}, "experts 7 of layer 3"),
    ],
)
def test_two_files_that_name_one_unit_are_refused(first: dict[str, Any], second: dict[str, Any], unit: str) -> None:
    kind, _, _, _, layer = unit.split()
    place = f"edits[0].{kind}.{layer}"

    text = refusal(lambda: PatchSet((member("a.yaml", first), member("b.yaml", second))), PatchError)

    assert text == f"b.yaml: {place}: {unit}: already named in a.yaml, {place}"


def test_files_are_loaded(tmp_path: Path) -> None:
    files = [tmp_path / "a.yaml", tmp_path / "b.json"]
    files[0].write_text(Patch.from_data(patch_data(zero({"0": [1]}))).to_yaml())
    files[1].write_text(Patch.from_data(patch_data(zero({"0": [2]}))).to_json())

    assert [item.source for item in PatchSet.load(files).members] == [str(file) for file in files]


def test_the_same_file_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(Patch.from_data(patch_data()).to_yaml())

    assert "already named in" in refusal(lambda: PatchSet.load([file, file]), PatchError)


def test_one_missing_file_is_wrong_usage(tmp_path: Path) -> None:
    missing = tmp_path / "a.yaml"

    assert refusal(lambda: PatchSet.load([missing]), UsageError) == f"{missing}: no such file"
