# SPDX-License-Identifier: Apache-2.0
"""Reading model folders, sound ones and those that lie."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from safetensors.torch import load_file

from tests.examples import refusal
from tests.folders import config_of, mlp_tensors, random_tensor, write_folder, write_model, write_raw
from vllm_surgery import CheckpointError, ModelFolder, UsageError
from vllm_surgery.checkpoint import INDEX_FILE
from vllm_surgery.tensors import bits, read_tensor

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DOWN = "model.layers.1.mlp.down_proj.weight"
DTYPES = ["F64", "F32", "F16", "BF16"]


def read(folder: Path) -> list[str]:
    return [info.name for info in ModelFolder(folder).tensors]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("axis", "index"), [(0, 0), (0, 3), (1, 0), (1, 5)])
def test_slices_are_what_the_library_reads(tmp_path: Path, dtype: str, axis: int, index: int) -> None:
    folder = write_model(tmp_path, dtype=dtype)
    expected = load_file(folder / "model.safetensors")[DOWN].select(axis, index).contiguous()
    assert ModelFolder(folder).read_slice(DOWN, axis, index) == bits(expected).numpy().tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_are_what_the_library_reads(tmp_path: Path, dtype: str) -> None:
    folder = write_model(tmp_path, dtype=dtype)
    stored = ModelFolder(folder).stored[DOWN]
    assert read_tensor(stored).equal(load_file(folder / "model.safetensors")[DOWN])


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_every_tensor_of_every_shard_is_seen(tmp_path: Path, shards: int) -> None:
    folder = write_model(tmp_path, shards=shards)
    assert sorted(read(folder)) == sorted(["model.embed_tokens.weight", *mlp_tensors((6, 6))])


def test_a_file_that_the_index_doesnt_name_is_not_read(tmp_path: Path) -> None:
    folder = write_model(tmp_path, shards=2)
    write_raw(folder / "stray.safetensors", b"not json")
    assert DOWN in read(folder)


def test_mistrals_second_copy_is_not_read(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    write_raw(folder / "consolidated.safetensors", b"not json")
    assert DOWN in read(folder)


def test_an_empty_tensor_is_sound(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"empty": random_tensor("F32", (0, 4))}, config_of((6,)))
    assert read(folder) == ["empty"]


HEADERS: dict[str, tuple[bytes, bytes, int | None, str]] = {
    "no json": (b"not json", b"", None, "Expecting value"),
    "not an object": (b"[]", b"", None, "has no attribute"),
    "longer than the file": (b"{}", b"", 99, "the file ends in its header"),
    "absurd length": (b"{}", b"", 1 << 60, "its header claims 1152921504606846976 bytes"),
    "empty": (b"", b"", None, "its header claims 0 bytes"),
    "no dtype": (b'{"x": {"shape": [1], "data_offsets": [0, 4]}}', b"1234", None, "has an entry without 'dtype'"),
    "data past the end": (
        b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}',
        b"1234",
        None,
        "the file ends before x",
    ),
    "wrong size": (
        b'{"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}',
        b"12345678",
        None,
        "x has 8 bytes, which is not its shape's size",
    ),
    "negative": (b'{"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}', b"1234", None, "x"),
    "backwards": (b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}', b"1234", None, "x"),
    "words": (b'{"x": {"dtype": "F32", "shape": ["a"], "data_offsets": [0, 4]}}', b"1234", None, "x"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_file_that_is_no_safetensors_file_is_refused(tmp_path: Path, name: str) -> None:
    header, data, length, said = HEADERS[name]
    folder = write_model(tmp_path)
    write_raw(folder / "model.safetensors", header, data, length)
    text = refusal(lambda: read(folder), CheckpointError)
    assert text.startswith(f"{folder}/model.safetensors: is no safetensors file: ")
    assert said in text


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert "the file ends before " in refusal(lambda: read(folder), CheckpointError)


def break_index(folder: Path, content: Any) -> None:
    (folder / INDEX_FILE).write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "model.safetensors.index.json: can't be read as JSON"),
        ([], "model.safetensors.index.json: is not a JSON object"),
        ({}, "model.safetensors.index.json: has no weight_map"),
        ({"weight_map": {"a": "../x.safetensors"}}, "'../x.safetensors' is not a file name in this folder"),
        ({"weight_map": {"a": "/x.safetensors"}}, "'/x.safetensors' is not a file name in this folder"),
        ({"weight_map": {"a": "gone.safetensors"}}, "gone.safetensors is named by the index but missing"),
    ],
)
def test_a_wrong_index_is_refused(tmp_path: Path, content: Any, said: str) -> None:
    folder = write_model(tmp_path, shards=2)
    break_index(folder, content)
    assert said in refusal(lambda: read(folder), CheckpointError)


def missing_folder(folder: Path) -> Path:
    return folder / "nowhere"


def file_instead(folder: Path) -> Path:
    return folder / "config.json"


@pytest.mark.parametrize("where", [missing_folder, file_instead])
def test_a_folder_that_isnt_there_is_wrong_usage(tmp_path: Path, where: Callable[[Path], Path]) -> None:
    path = where(write_model(tmp_path))
    assert refusal(lambda: ModelFolder(path), UsageError) == f"{path}: no such model folder"


def test_a_folder_without_a_config_is_no_model(tmp_path: Path) -> None:
    said = f"{tmp_path}: has no config.json, so it is no Hugging Face model folder"
    assert refusal(lambda: ModelFolder(tmp_path), CheckpointError) == said


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert refusal(lambda: read(tmp_path), CheckpointError) == f"{tmp_path}: has no safetensors files"


@pytest.mark.parametrize(("name", "axis", "index"), [("gone", 0, 0), (DOWN, 1, 6), (DOWN, 0, 4), (DOWN, 0, -1)])
def test_a_slice_that_isnt_there_is_refused(tmp_path: Path, name: str, axis: int, index: int) -> None:
    folder = ModelFolder(write_model(tmp_path))
    assert "has no" in refusal(lambda: folder.read_slice(name, axis, index), CheckpointError)
