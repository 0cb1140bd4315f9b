# SPDX-License-Identifier: Apache-2.0
"""The checkpoint on disk must stay what it was when the model was loaded."""

from __future__ import annotations

import os
import shutil
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from vllm_surgery import CannotSwapError
from vllm_surgery.engine.swap.source_checkpoint import SourceCheckpoint, local_folder

if TYPE_CHECKING:
    from pathlib import Path

WEIGHTS = {"model.layers.0.mlp.down_proj.weight": torch.arange(6.0).view(2, 3)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1}')
    save_file(WEIGHTS, model / "model.safetensors")
    return model


def test_an_untouched_checkpoint_is_unchanged(folder: Path) -> None:
    checkpoint = SourceCheckpoint(folder)
    checkpoint.check_unchanged()
    assert torch.equal(checkpoint.tensor("model.layers.0.mlp.down_proj.weight"), next(iter(WEIGHTS.values())))
    assert checkpoint.names == tuple(WEIGHTS)


def test_another_time_is_a_change(folder: Path) -> None:
    checkpoint = SourceCheckpoint(folder)
    os.utime(folder / "model.safetensors", (1, 1))
    with pytest.raises(CannotSwapError, match=r"model\.safetensors is no longer the file that was loaded$"):
        checkpoint.check_unchanged()


def test_another_header_is_a_change_even_with_size_and_time_kept(folder: Path) -> None:
    checkpoint, file = SourceCheckpoint(folder), folder / "model.safetensors"
    status = file.stat()
    file.write_bytes(file.read_bytes().replace(b"[2,3]", b"[3,2]"))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(CannotSwapError, match="is no longer the file that was loaded"):
        checkpoint.check_unchanged()


def test_a_file_more_is_a_change(folder: Path) -> None:
    checkpoint = SourceCheckpoint(folder)
    shutil.copy(folder / "model.safetensors", folder / "more.safetensors")
    with pytest.raises(CannotSwapError, match=r"more\.safetensors is no longer the file that was loaded$"):
        checkpoint.check_unchanged()


def test_a_checkpoint_that_is_gone_is_a_change(folder: Path) -> None:
    checkpoint = SourceCheckpoint(folder)
    shutil.rmtree(folder)
    with pytest.raises(CannotSwapError, match=r"^the checkpoint can't be read any more: .*no such model folder$"):
        checkpoint.check_unchanged()


def config(model: str, cache: Path | None = None) -> SimpleNamespace:
    return SimpleNamespace(
        model_config=SimpleNamespace(model=model, revision=None),
        load_config=SimpleNamespace(download_dir=None if cache is None else str(cache)),
    )


def test_a_folder_is_where_it_says(folder: Path) -> None:
    assert local_folder(config(str(folder))) == folder


def test_a_model_of_the_hub_is_found_in_the_cache(folder: Path, tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "cache" / "models--org--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(folder, repository / "snapshots" / commit)
    found = local_folder(config("org/name", tmp_path / "cache"))
    assert found == repository / "snapshots" / commit
    assert SourceCheckpoint(found).folder.facts.base == "org/name"


@pytest.mark.parametrize("name", ["org/absent", "s3://bucket/model", "not a name at all"])
def test_a_model_that_is_not_on_this_machine_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(CannotSwapError, match=r"is not in this machine's Hugging Face cache$"):
        local_folder(config(name, tmp_path))
