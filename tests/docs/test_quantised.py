# SPDX-License-Identifier: Apache-2.0
"""The table in docs/quantised.md says what the package does with a checkpoint of each kind."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.quantised import KINDS, make
from vllm_surgery import ModelFolder
from vllm_surgery.planning.inventory import take_inventory

if TYPE_CHECKING:
    from vllm_surgery.planning.inventory import UnitsFound

PAGE = Path(__file__).parents[2] / "docs" / "quantised.md"


def cell(found: UnitsFound) -> str:
    tensors = " and ".join(f"`{name.rpartition('mlp.')[2].removeprefix('experts.*.')}`" for name in found.tensors)
    return f"{', '.join(found.ops)}: {tensors}"


@pytest.mark.parametrize("word", KINDS)
def test_a_row_says_which_ops_are_exact_and_where_gains_go(tmp_path: Path, word: str) -> None:
    found = [
        take_inventory(ModelFolder(make(tmp_path / str(experts), KINDS[word], experts=experts))).found[0]
        for experts in (False, True)
    ]

    assert f"| {word} | {cell(found[0])} | {cell(found[1])} |" in PAGE.read_text().splitlines()
