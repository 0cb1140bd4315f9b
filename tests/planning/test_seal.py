# SPDX-License-Identifier: Apache-2.0
"""Seals: hashes of the units' original weights, whatever the names of their tensors and the shape of the folder."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import SOURCE, patches_of, refusal, zero
from tests.folders import BYTES_PER_NUMBER, Tensor, config_of, mlp_tensors, write_folder, write_model
from vllm_surgery.errors import CheckpointError, MismatchError
from vllm_surgery.model.checkpoint import ModelFolder
from vllm_surgery.model.config import ModelFacts
from vllm_surgery.model.conventions import MLP_ROLES as ROLES
from vllm_surgery.model.conventions import PartName, classify_tensor
from vllm_surgery.model.tensor_info import TensorInfo
from vllm_surgery.patch.units import Unit
from vllm_surgery.planning.seal import SealCheck, Sealed, seal_of_folder, unit_hash

if TYPE_CHECKING:
    from pathlib import Path

WIDTHS, HIDDEN = (6, 8), 4
LAYER, INDEX = 1, 5


def neuron_hash(parts: dict[PartName, tuple[str, bytes]]) -> str:
    return unit_hash(
        {(part_name, "weight"): Sealed(dtype, len(content), content) for part_name, (dtype, content) in parts.items()}
    )


def seal(folder: Path, index: int = INDEX, layer: int = LAYER) -> str:
    return seal_of_folder(ModelFolder(folder), Unit("neurons", layer, index))


def place_of(part_name: PartName, index: int, number: int) -> int:
    """Where the `number`-th weight of a unit lies in its tensor, counted in numbers."""
    return number * WIDTHS[LAYER] + index if part_name == "down" else index * HIDDEN + number


def with_bit_flipped(tensors: dict[str, Tensor], part_name: PartName, number: int, bit: int) -> dict[str, Tensor]:
    name = f"model.layers.{LAYER}.mlp.{part_name}_proj.weight"
    old = tensors[name]
    data = bytearray(old.data)
    data[number * BYTES_PER_NUMBER[old.dtype] + bit // 8] ^= 1 << bit % 8
    return {**tensors, name: Tensor(old.dtype, old.shape, bytes(data))}


def test_a_seal_is_the_sha256_of_the_parts_with_their_formats_and_lengths(tmp_path: Path) -> None:
    folder = ModelFolder(write_model(tmp_path, WIDTHS, hidden=HIDDEN))
    content = b""
    for part_name, axis in (("gate", 0), ("up", 0), ("down", 1)):
        weights = folder.read_slice(f"model.layers.{LAYER}.mlp.{part_name}_proj.weight", axis, INDEX)
        content += f"{part_name} F32 16\n".encode() + weights

    assert seal_of_folder(folder, Unit("neurons", LAYER, INDEX)) == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("shards", [2, 3, 7])
def test_shards_do_not_matter(tmp_path: Path, shards: int) -> None:
    whole, sharded = write_model(tmp_path / "a", WIDTHS), write_model(tmp_path / "b", WIDTHS, shards=shards)

    assert seal(whole) == seal(sharded)


@pytest.mark.parametrize("prefix", ["model.language_model", "language_model.model"])
def test_the_names_roots_do_not_matter(tmp_path: Path, prefix: str) -> None:
    one, other = write_model(tmp_path / "a", WIDTHS), write_model(tmp_path / "b", WIDTHS, prefix=prefix)

    assert seal(one) == seal(other)


def test_number_formats_do_matter(tmp_path: Path) -> None:
    seals = {seal(write_model(tmp_path / dtype, WIDTHS, dtype=dtype)) for dtype in ("F32", "F16", "BF16", "I32")}

    assert len(seals) == 4


def test_each_unit_has_its_own(tmp_path: Path) -> None:
    folder = write_model(tmp_path, WIDTHS)

    assert len({seal(folder, index, layer) for layer, width in enumerate(WIDTHS) for index in range(width)}) == sum(
        WIDTHS
    )


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("seals")


@pytest.mark.parametrize("part_name", ROLES)
@given(data=st.data())
def test_every_bit_of_a_unit_matters(scratch: Path, part_name: PartName, data: st.DataObject) -> None:
    tensors = mlp_tensors(WIDTHS, HIDDEN, "BF16")
    number = place_of(part_name, INDEX, data.draw(st.integers(0, HIDDEN - 1)))
    before = seal(write_folder(scratch, tensors, config_of(WIDTHS)))

    changed = with_bit_flipped(tensors, part_name, number, data.draw(st.integers(0, 15)))

    assert seal(write_folder(scratch, changed, config_of(WIDTHS))) != before


@pytest.mark.parametrize("part_name", ROLES)
@given(data=st.data())
def test_no_bit_of_another_unit_matters(scratch: Path, part_name: PartName, data: st.DataObject) -> None:
    tensors = mlp_tensors(WIDTHS, HIDDEN, "BF16")
    other = data.draw(st.sampled_from([index for index in range(WIDTHS[LAYER]) if index != INDEX]))
    number = place_of(part_name, other, data.draw(st.integers(0, HIDDEN - 1)))
    before = seal(write_folder(scratch, tensors, config_of(WIDTHS)))

    changed = with_bit_flipped(tensors, part_name, number, data.draw(st.integers(0, 15)))

    assert seal(write_folder(scratch, changed, config_of(WIDTHS))) == before


def test_the_parts_cannot_be_exchanged() -> None:
    first, second = ("F32", b"aaaa"), ("F32", b"bbbb")

    assert neuron_hash({"gate": first, "up": second, "down": first}) != neuron_hash(
        {"gate": second, "up": first, "down": first}
    )


def test_bytes_cannot_move_from_one_part_to_the_next() -> None:
    assert neuron_hash({"gate": ("I8", b"ab"), "up": ("I8", b"c"), "down": ("I8", b"d")}) != neuron_hash(
        {"gate": ("I8", b"a"), "up": ("I8", b"bc"), "down": ("I8", b"d")}
    )


@pytest.mark.parametrize(
    ("layer", "index", "reason"),
    [
        (2, 0, "layer 2 has no gated MLP (no gate, up, down projection)"),
        (0, 6, "model.layers.0.mlp.gate_proj.weight: has no row 6: it is F32 [6, 4]"),
    ],
)
def test_a_neuron_that_is_not_there_has_none(tmp_path: Path, layer: int, index: int, reason: str) -> None:
    folder = write_model(tmp_path, WIDTHS)

    assert refusal(lambda: seal(folder, index, layer), CheckpointError).endswith(reason)


# Checking, as tensors come by


def checked(content: Any, parts: list[PartName], wanted: str) -> None:
    check = SealCheck(patches_of(zero({"0": [1]}), seal={"neurons/0/1": wanted}), ModelFacts())
    for part_name in parts:
        role = classify_tensor(f"model.layers.0.mlp.{part_name}_proj.weight")
        assert role is not None
        check.observe(role, TensorInfo(part_name, "I8", (4, 4)), lambda axis, index: content)
    check.finish()


WEIGHTS = b"abcd"
RIGHT = neuron_hash(dict.fromkeys(ROLES, ("I8", WEIGHTS)))


@given(st.permutations(ROLES))
def test_a_whole_seal_passes_in_any_order(parts: list[PartName]) -> None:
    checked(WEIGHTS, parts, RIGHT)


def test_a_broken_seal_is_refused() -> None:
    wrong = RIGHT[::-1]

    assert refusal(lambda: checked(WEIGHTS, list(ROLES), wrong), MismatchError) == (
        f"{SOURCE}: seal.neurons/0/1: broken: the model's weights are not the sealed ones"
        f" ({RIGHT[:12]}… against {wrong[:12]}…)"
    )


@pytest.mark.parametrize(("parts", "words"), [([], "none"), (["gate"], "gate"), (["up", "down"], "up, down")])
def test_a_unit_that_was_not_seen_whole_is_refused(parts: list[PartName], words: str) -> None:
    assert refusal(lambda: checked(WEIGHTS, parts, RIGHT), MismatchError) == (
        f"{SOURCE}: seal.neurons/0/1: broken: of the unit's parts only {words} can be read"
    )
