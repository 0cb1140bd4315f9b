# SPDX-License-Identifier: Apache-2.0
"""A model whose loops are known, and patches for it, for servers that loop and are cured."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.localization.planted import Planted


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """A model that goes round in circles of seven words."""
    from tests.localization.planted import dense_loop

    return dense_loop(tmp_path_factory.mktemp("planted") / "model")


@pytest.fixture(scope="module")
def patches(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files of patches: one that ends the loops; one that ends answers early; one that does nothing to loops."""
    from tests.engine.test_planted import swapped

    folder: Path = tmp_path_factory.mktemp("patches")
    files = {}
    for name, units in (("cure", planted.units), ("breaker", planted.breakers), ("decoy", planted.decoys[:2])):
        file = folder / f"{name}.json"
        file.write_text(json.dumps({**swapped(planted, "zero", units), "name": name}))
        files[name] = str(file)
    return files
