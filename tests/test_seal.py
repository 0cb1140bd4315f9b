# SPDX-License-Identifier: Apache-2.0
"""A seal is a hash of one neuron's original weights, and of nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.examples import SOURCE, patches_of, refusal, zero
from tests.folders import Tensor, config_of, mlp_tensors, write_folder, write_model
from vllm_surgery import CheckpointError, MismatchError, ModelFolder
from vllm_surgery.review import review
from vllm_surgery.seal import seal_of_folder

if TYPE_CHECKING:
    from pathlib import Path

WIDTHS = (6, 8)
LAYER, INDEX = 1, 3


def seal(folder: Path) -> str:
    return seal_of_folder(ModelFolder(folder), LAYER, INDEX)


def with_flipped_bit(tensors: dict[str, Tensor], name: str, number: int) -> dict[str, Tensor]:
    tensor = tensors[name]
    data = bytearray(tensor.data)
    data[4 * number] ^= 1
    return {**tensors, name: Tensor(tensor.dtype, tensor.shape, bytes(data))}


@pytest.mark.parametrize("shards", [2, 4])
def test_shards_dont_matter(tmp_path: Path, shards: int) -> None:
    one, many = write_model(tmp_path / "one", WIDTHS), write_model(tmp_path / "many", WIDTHS, shards=shards)
    assert seal(one) == seal(many)


def test_names_dont_matter(tmp_path: Path) -> None:
    config = config_of(WIDTHS)
    plain = write_folder(tmp_path / "plain", mlp_tensors(WIDTHS), config)
    nested = write_folder(tmp_path / "nested", mlp_tensors(WIDTHS, prefix="model.language_model"), config)
    assert seal(plain) == seal(nested)


@pytest.mark.parametrize(("part", "number"), [("gate", 3 * 4), ("up", 3 * 4 + 3), ("down", 3), ("down", 3 * 8 + 3)])
def test_any_bit_of_the_neuron_matters(tmp_path: Path, part: str, number: int) -> None:
    tensors, config = mlp_tensors(WIDTHS), config_of(WIDTHS)
    name = f"model.layers.{LAYER}.mlp.{part}_proj.weight"
    before = write_folder(tmp_path / "before", tensors, config)
    after = write_folder(tmp_path / "after", with_flipped_bit(tensors, name, number), config)
    assert seal(before) != seal(after)


@pytest.mark.parametrize(("part", "number"), [("gate", 2 * 4), ("up", 4 * 4), ("down", 2), ("down", 3 * 8 + 4)])
def test_no_bit_of_another_neuron_matters(tmp_path: Path, part: str, number: int) -> None:
    tensors, config = mlp_tensors(WIDTHS), config_of(WIDTHS)
    name = f"model.layers.{LAYER}.mlp.{part}_proj.weight"
    before = write_folder(tmp_path / "before", tensors, config)
    after = write_folder(tmp_path / "after", with_flipped_bit(tensors, name, number), config)
    assert seal(before) == seal(after)


def test_the_number_format_matters(tmp_path: Path) -> None:
    seals = {seal(write_model(tmp_path / dtype, WIDTHS, dtype=dtype)) for dtype in ("F32", "F16", "BF16")}
    assert len(seals) == 3


def test_a_seal_never_changes_between_versions_of_this_program(tmp_path: Path) -> None:
    folder = write_folder(
        tmp_path,
        {
            f"model.layers.1.mlp.{part}_proj.weight": Tensor("F32", shape, bytes(range(32 * 4)))
            for part, shape in (("gate", (8, 4)), ("up", (8, 4)), ("down", (4, 8)))
        },
        config_of(WIDTHS),
    )
    assert seal(folder) == "533bb74ce46f1a6677f02cbd9b1bb5a3f74108c722ea1d2d4e05a6ac5d03ffb8"


def checked(folder: Path, seals: dict[str, str]) -> Any:
    return review(patches_of(zero({str(LAYER): [INDEX]}), seal=seals), ModelFolder(folder))


def test_a_whole_seal_is_passed(tmp_path: Path) -> None:
    folder = write_model(tmp_path, WIDTHS)
    assert checked(folder, {f"neurons/{LAYER}/{INDEX}": seal(folder)}).units == 1


def test_a_broken_seal_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path, WIDTHS)
    other = seal_of_folder(ModelFolder(folder), LAYER, INDEX + 1)
    said = (
        f"{SOURCE}: seal.neurons/{LAYER}/{INDEX}: broken: the model's weights are not the sealed ones "
        f"({seal(folder)[:12]}… against {other[:12]}…)"
    )
    assert refusal(lambda: checked(folder, {f"neurons/{LAYER}/{INDEX}": other}), MismatchError) == said


def test_a_layer_that_isnt_there_has_no_seal(tmp_path: Path) -> None:
    folder = ModelFolder(write_model(tmp_path, WIDTHS))
    said = f"{folder.path}: layer 7 has no gated MLP (no gate, up, down projection)"
    assert refusal(lambda: seal_of_folder(folder, 7, 0), CheckpointError) == said
