# SPDX-License-Identifier: Apache-2.0
"""How a checkpoint's tensors are put into files: one, several with an index, or torch's older format."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.folders import write_model
from vllm_surgery import ModelFolder
from vllm_surgery.cli import main
from vllm_surgery.offline.diff import diff

if TYPE_CHECKING:
    from pathlib import Path

DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def patch(tmp_path: Path) -> Path:
    file = tmp_path / "p.yaml"
    file.write_text("version: 1\nname: p\nedits: [{op: negate, neurons: {1: [2]}}]\n")
    return file


def as_bin(model: Path, folder: Path) -> Path:
    """The same weights in the older format of torch."""
    folder.mkdir()
    (folder / "config.json").write_bytes((model / "config.json").read_bytes())
    torch.save(load_file(model / "model.safetensors"), folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize("shards", [1, 3])
def test_in_one_file_or_several_a_patch_changes_the_same_bytes(tmp_path: Path, patch: Path, shards: int) -> None:
    model, out = write_model(tmp_path / "model", shards=shards), tmp_path / "out"

    assert main(["bake", str(patch), "--model", str(model), "--out", str(out)]) == 0

    before, after = (
        {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
        for folder in (model, out)
    )
    before[DOWN][:, 2] *= -1
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert sorted(file.name for file in model.iterdir()) == sorted(
        file.name for file in out.iterdir() if file.name not in {"README.md", "vllm_surgery.json"}
    )


def test_the_difference_does_not_ask_how_many_files_there_are(tmp_path: Path) -> None:
    one, three = write_model(tmp_path / "one"), write_model(tmp_path / "three", shards=3)
    tensors = load_file(one / "model.safetensors")
    tensors[DOWN][:, 2] *= -1
    save_file(tensors, one / "model.safetensors", {"format": "pt"})

    found = diff(ModelFolder(three), ModelFolder(one))

    assert (found.gains, found.unexplained) == ({(1, 2): -1.0}, [])


@pytest.mark.parametrize(
    "command",
    [
        "check {patch} --model {model}",
        "bake {patch} --model {model} --out {out}",
        "diff {model} {model}",
        "seal {patch} --model {model}",
        "export-lora {patch} --model {model} --out {out}",
        "doctor --model {model}",
    ],
)
def test_files_of_torch_are_refused_by_what_reads_checkpoints(
    tmp_path: Path, patch: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model, text = as_bin(write_model(tmp_path / "model"), tmp_path / "bin"), patch.read_text()

    code = main(command.format(patch=patch, model=model, out=tmp_path / "out").split())

    reason = "has no safetensors files; of .bin files only a server's start can read weights"
    assert (code, capsys.readouterr().err) == (1, f"vllm-surgery: error: {model}: {reason}\n")
    assert not (tmp_path / "out").exists()
    assert patch.read_text() == text
