# SPDX-License-Identifier: Apache-2.0
"""A fake server, and small files for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.evaluation.fake_server import TABLE, FakeVllm
from tests.examples import patch_data
from vllm_surgery.evaluation import setup
from vllm_surgery.patch.format import Patch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROTOCOL = """
name: tiny
cells:
  - {name: sampled, sets: [paper, healthy], seeds: 3, temperature: 0.7, max_tokens: 400}
  - {name: side, sets: [short, skills], temperature: 0, max_tokens: 100}
text: [{text}]
"""
TEXT = "name: one\nuse: text\nprobes: [{id: a, prompt: Name a color., reply: Blue.}]\n"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeVllm]:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    monkeypatch.setattr(setup, "token_table", lambda name, arm=None: TABLE)
    made = FakeVllm()
    yield made
    made.close()


@pytest.fixture
def protocol(tmp_path: Path) -> str:
    file, text = tmp_path / "tiny.yaml", tmp_path / "text.yaml"
    text.write_text(TEXT)
    file.write_text(PROTOCOL.replace("{text}", str(text)))
    return str(file)


@pytest.fixture
def cure(tmp_path: Path) -> str:
    file = tmp_path / "cure.yaml"
    file.write_text(Patch.from_data(patch_data(name="cure")).to_yaml())
    return str(file)
