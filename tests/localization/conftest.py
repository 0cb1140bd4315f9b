# SPDX-License-Identifier: Apache-2.0
"""A tiny model folder for searches that need no engine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.folders import write_model
from tests.localization.fake import LAYERS, WIDTH
from vllm_surgery.model.checkpoint import ModelFolder

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def no_waiting_for_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search waits hundreds of times until a disk has what it keeps; here no machine loses its power."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """What `FakeModel` says that it was loaded from: a few neurons in a few layers."""
    folder: Path = tmp_path_factory.mktemp("tiny")
    return ModelFolder(write_model(folder, (WIDTH,) * LAYERS))
