# SPDX-License-Identifier: Apache-2.0
"""Several patches at once: no unit in common, no order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.examples import patch_data, refusal, scale, zero
from vllm_surgery import Patch, PatchError, PatchSet, UsageError
from vllm_surgery.stack import NO_PATCH, SourcedPatch

if TYPE_CHECKING:
    from pathlib import Path


def member(source: str, *edits: dict[str, Any], **changes: object) -> SourcedPatch:
    return SourcedPatch(source, Patch.from_data(patch_data(*edits, **changes)))


A = member("a.yaml", zero({"1": [2]}), name="a")
B = member("b.yaml", zero({"1": [3]}), name="b")


def test_no_patch_is_called_none() -> None:
    assert PatchSet().id == NO_PATCH == "none"


def test_the_id_doesnt_depend_on_the_order() -> None:
    assert PatchSet((A, B)).id == PatchSet((B, A)).id == f"{A.patch.id}+{B.patch.id}"


def test_the_id_of_one_is_its_own() -> None:
    assert PatchSet((A,)).id == A.patch.id


@pytest.mark.parametrize(
    ("selection", "index"),
    [({"1": [2]}, 2), ({"1": ["0-9"]}, 2), ({"1": "all"}, 2), ({"0": [2], "1": [7, 2]}, 2)],
)
def test_a_unit_named_by_two_is_refused(selection: dict[str, Any], index: int) -> None:
    other = member("other.yaml", scale(2, selection))
    said = f"other.yaml: edits[0].neurons.1: neurons {index} of layer 1: already named in a.yaml, edits[0].neurons.1"
    assert refusal(lambda: PatchSet((A, other)), PatchError) == said


def test_a_neuron_and_an_expert_of_the_same_index_are_two_units() -> None:
    assert len(PatchSet((A, member("e.yaml", zero({"1": [2]}, "experts"))))) == 2


def test_files_are_read_in_order(tmp_path: Path) -> None:
    files = [tmp_path / "b.yaml", tmp_path / "a.yaml"]
    for file, patch in zip(files, (B, A), strict=True):
        file.write_text(patch.patch.to_yaml())
    assert [item.source for item in PatchSet.load(files).members] == [str(file) for file in files]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert refusal(lambda: PatchSet.load([tmp_path / "x"]), UsageError) == f"{tmp_path}/x: no such file"
