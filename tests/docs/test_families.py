# SPDX-License-Identifier: Apache-2.0
"""docs/families.md says what the package does with every family, and what tests of engines there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from tests.docs.families import exactness
from tests.docs.families.checkpoints import KINDS, store
from tests.docs.families.engines import cell, known_tests, unused
from tests.docs.families.page import PAGE, page
from tests.docs.families.survey import survey, without_units
from tests.engine import shown
from tests.engine.shown import Claim, Column
from tests.models import EXPERT_FAMILIES, FAMILIES, SEEING_FAMILIES, make_model
from tests.quantised import stored

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow  # Bakes every family on every kind of checkpoint.


@pytest.fixture(scope="module")
def existing() -> frozenset[str]:
    return known_tests()


def test_the_page_is_what_the_tests_find(existing: frozenset[str]) -> None:
    assert PAGE.read_text() == page(survey(), without_units(), existing), "run `make matrix`, and read what changed"


@pytest.mark.parametrize(
    ("columns", "rows"),
    [
        (shown.FAMILIES, [*FAMILIES, *EXPERT_FAMILIES, *SEEING_FAMILIES]),
        (shown.KINDS, [*KINDS, *shown.ONLINE]),
        (shown.LAYOUTS, list(shown.LAYOUT_ROWS)),
    ],
    ids=["families", "kinds", "layouts"],
)
def test_no_claim_names_tests_that_are_gone(
    columns: tuple[Column, ...], rows: list[str], existing: frozenset[str]
) -> None:
    assert [claim for column in columns for claim in unused(column, rows, existing)] == []


def test_a_claim_without_its_test_is_an_error(existing: frozenset[str]) -> None:
    column = Column("some", instead={"Llama": Claim("test_load.py::test_that_is_gone")})
    with pytest.raises(AssertionError, match="there is no test_load"):
        cell(column, "Llama", existing)
    with pytest.raises(AssertionError, match="no test shows it, and no reason is given"):
        cell(column, "Qwen2", existing)


@pytest.mark.parametrize("word", ["bf16", "int8 per channel"])
@pytest.mark.parametrize("wrong", ["mlp.down_proj.weight", "mlp.up_proj.weight", "mlp.gate_proj.weight"])
def test_a_bake_that_does_more_or_other_than_it_should_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, wrong: str
) -> None:
    checkpoint = store(make_model(tmp_path / "model", "Llama/two layers", torch.bfloat16), word, tmp_path / "small")
    assert checkpoint is not None

    def spoilt(patches: Any, model: Any, out: Path) -> None:
        bake(patches, model, out)
        tensors = stored(out)
        tensors[f"model.layers.1.{wrong}"].view(torch.uint8)[exactness.FIRST_NEURON, 1] ^= 1
        save_file(tensors, out / "model.safetensors")

    bake = exactness.bake
    monkeypatch.setattr(exactness, "bake", spoilt)
    with pytest.raises(AssertionError):
        exactness.held(checkpoint, "neurons")
