# SPDX-License-Identifier: Apache-2.0
"""A patch in words."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.folders import write_model
from vllm_surgery import ModelFolder, Patch
from vllm_surgery.cli import main
from vllm_surgery.patch.describe import count, describe, gain_in_words, model_card
from vllm_surgery.planning.inventory import describe_model

if TYPE_CHECKING:
    from pathlib import Path

PATCH = Patch.parse(
    """
version: 1
name: words
description: |
  One late neuron inverted;
  fewer loops.

  Measured elsewhere.
model: {architectures: [LlamaForCausalLM, Other], num_hidden_layers: 30}
edits:
  - {op: negate, neurons: {29: [545]}}
  - {op: zero, neurons: {3: [1, "5-7"], 12: all}}
  - {op: scale, factor: -0.8, neurons: {1: [9]}, experts: {4: [2]}}
  - {op: mask, experts: {7: [41, 88]}}
provenance: {source: a search}
"""
)


def test_everything_is_said() -> None:
    assert describe(PATCH).splitlines() == [
        PATCH.id,
        "  One late neuron inverted; fewer loops.",
        "  Measured elsewhere.",
        "  for: architectures LlamaForCausalLM or Other, num_hidden_layers 30",
        "  neurons x -0.8: layer 1: 9",
        "  neurons silenced: layer 3: 1, 5-7; layer 12: all",
        "  experts x -0.8: layer 4: 2",
        "  experts masked: layer 7: 41, 88",
        "  neurons negated: layer 29: 545",
        "  no seal",
        "  provenance:",
        "    source: a search",
    ]


def test_a_patch_without_a_guard_says_so() -> None:
    patch = Patch.from_data({"version": 1, "name": "x", "edits": [{"op": "zero", "neurons": {"0": [0]}}]})
    assert "  for: any model that has these units" in describe(patch).splitlines()


def test_control_characters_dont_reach_the_terminal() -> None:
    data = {
        "version": 1,
        "name": "x",
        "description": "red \x1b[31m",
        "model": {"base": "\x1b]0;title\x07"},
        "edits": [{"op": "zero", "neurons": {"0": [0]}}],
        "provenance": {"note": "\x1b[2J"},
    }
    assert "\x1b" not in describe(Patch.from_data(data))


@pytest.mark.parametrize(
    ("gain", "words"), [(-1.0, "negated"), (0.0, "silenced"), ("mask", "masked"), (5.0, "x 5"), (-0.8, "x -0.8")]
)
def test_gains_have_words(gain: float, words: str) -> None:
    assert gain_in_words(gain) == words


@pytest.mark.parametrize(("number", "words"), [(0, "0 units"), (1, "1 unit"), (2, "2 units")])
def test_nouns_are_counted(number: int, words: str) -> None:
    assert count(number, "unit") == words


def test_a_model_card_says_the_same_in_markdown() -> None:
    card = model_card(PATCH)
    assert card.startswith(f"## Edited by vllm-surgery: `{PATCH.id}`\n\nOne late neuron inverted; fewer loops.\n\n")
    assert "\n- neurons negated: layer 29: 545\n" in card
    assert Patch.parse(card.split("```yaml\n")[1].split("```")[0]) == PATCH


def test_a_model_is_said_in_one_line(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", (6, 8))
    assert describe_model(ModelFolder(folder)) == (
        f"{folder}: LlamaForCausalLM, 2 layers, 6 or 8 neurons in each of 2 dense MLPs, 14 neurons in all"
    )


def test_the_command_shows_patch_and_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, file = write_model(tmp_path / "model", (6, 8)), tmp_path / "patch.yaml"
    file.write_text(PATCH.to_yaml())
    assert main(["show", str(file), "--model", str(folder)]) == 0
    out = capsys.readouterr().out
    assert out == f"{describe(PATCH)}\n  model {describe_model(ModelFolder(folder))}\n"


def test_the_command_writes_markdown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "patch.yaml"
    file.write_text(PATCH.to_yaml())
    assert main(["show", str(file), "--markdown"]) == 0
    assert capsys.readouterr().out == model_card(PATCH) + "\n"


def test_the_command_reports_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "patch.yaml"
    file.write_text(PATCH.to_yaml())
    assert main(["show", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "id": PATCH.id,
        "digest": PATCH.digest,
        "model": None,
        "patch": PATCH.to_data(),
    }
