# SPDX-License-Identifier: Apache-2.0
"""Reviews: patches held against a folder on disk."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.examples import SOURCE, patches_of, refusal, zero
from tests.folders import config_of, mlp_tensors, random_tensor, write_folder, write_model, write_raw
from vllm_surgery.errors import CheckpointError, MismatchError
from vllm_surgery.model.checkpoint import ModelFolder
from vllm_surgery.patch.units import Unit
from vllm_surgery.planning.check import check_patches
from vllm_surgery.planning.planner import plan
from vllm_surgery.planning.seal import seal_of_folder

if TYPE_CHECKING:
    from pathlib import Path

    from vllm_surgery.planning.planner import Plan

WIDTHS = (6, 8)


def sealed(folder: Path, layer: int, index: int) -> dict[str, str]:
    return {f"neurons/{layer}/{index}": seal_of_folder(ModelFolder(folder), Unit("neurons", layer, index))}


def review_of(folder: Path, *edits: object, **changes: object) -> Plan:
    return check_patches(patches_of(*edits, **changes), ModelFolder(folder))


@pytest.mark.parametrize("shards", [1, 4])
def test_a_review_is_the_plan(tmp_path: Path, shards: int) -> None:
    folder = ModelFolder(write_model(tmp_path, WIDTHS, shards=shards))
    patches = patches_of(zero({"1": "all"}))

    assert check_patches(patches, folder) == plan(patches, folder.facts, folder.tensors)


def test_a_whole_seal_passes(tmp_path: Path) -> None:
    write_model(tmp_path, WIDTHS)

    assert review_of(tmp_path, zero({"1": [5]}), seal=sealed(tmp_path, 1, 5)).units == 1


def test_a_seal_of_other_weights_is_refused(tmp_path: Path) -> None:
    other = sealed(write_model(tmp_path / "a", WIDTHS, seed=1), 1, 5)
    folder = write_model(tmp_path / "b", WIDTHS, seed=2)

    assert refusal(lambda: review_of(folder, zero({"1": [5]}), seal=other), MismatchError).startswith(
        f"{SOURCE}: seal.neurons/1/5: broken: the model's weights are not the sealed ones ("
    )


@pytest.mark.parametrize("first", ["gate", "up", "down"])
def test_a_seal_out_of_range_is_refused_as_the_edit_is(tmp_path: Path, first: str) -> None:
    tensors = dict(sorted(mlp_tensors(WIDTHS).items(), key=lambda item: first not in item[0]))
    write_folder(tmp_path, tensors, config_of(WIDTHS))

    text = refusal(lambda: review_of(tmp_path, zero({"1": [8]}), seal={"neurons/1/8": "0" * 64}), MismatchError)

    assert text == f"{SOURCE}: edits[0].neurons.1: index 8 is out of range: layer 1 has 8 neurons"


def test_a_seal_of_a_format_without_whole_bytes_is_refused(tmp_path: Path) -> None:
    header = {"model.layers.0.mlp.gate_proj.weight": {"dtype": "F4", "shape": [6, 4], "data_offsets": [0, 12]}}
    write_model(tmp_path, (6,))
    write_raw(tmp_path / "model.safetensors", json.dumps(header).encode(), bytes(12))

    assert refusal(lambda: review_of(tmp_path, zero({"0": [1]}), seal={"neurons/0/1": "0" * 64}), CheckpointError)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": {"hidden_size": 5}}, "model.hidden_size: the patch is for 5, this model has 4"),
        ({"model": {"base": "org/model"}}, "model.base: the patch is for org/model, but this model doesn't say what it has"),
        ({"model": {"intermediate_size": 6}}, "model.intermediate_size: the patch is for 6 neurons in layer 1, this model has 8"),
    ],
)  # fmt: skip
def test_a_guard_is_held_against_the_folder(tmp_path: Path, changes: dict[str, object], reason: str) -> None:
    write_model(tmp_path, WIDTHS)

    assert refusal(lambda: review_of(tmp_path, **changes), MismatchError) == f"{SOURCE}: {reason}"


def test_a_folder_in_the_hubs_cache_says_its_base(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "models--org--model" / "snapshots" / "1", WIDTHS)

    assert review_of(folder, zero({"1": [5]}), model={"base": "org/model", "revision": "1"}).units == 1


def test_a_folder_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path, WIDTHS)
    (tmp_path / "model.safetensors").write_bytes(b"x")

    assert refusal(lambda: review_of(tmp_path), CheckpointError).startswith(f"{tmp_path}/model.safetensors: ")


def test_a_models_other_tensors_do_not_matter(tmp_path: Path) -> None:
    towers = {f"visual.blocks.{n}.mlp.down_proj.weight": random_tensor("F16", (n + 1, 3)) for n in range(3)}
    write_folder(tmp_path, towers | mlp_tensors(WIDTHS), config_of(WIDTHS))

    assert [edit.tensor for edit in review_of(tmp_path).edits] == ["model.layers.1.mlp.down_proj.weight"]
