# SPDX-License-Identifier: Apache-2.0
"""Model folders: config, headers and slices, and every way in which they can be wrong."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import safe_open

from tests.examples import refusal
from tests.folders import config_of, mlp_tensors, random_tensor, write_folder, write_model, write_raw, write_safetensors
from vllm_surgery.errors import CheckpointError, UsageError, one_line
from vllm_surgery.model.checkpoint import INDEX_FILE, ModelFolder
from vllm_surgery.model.config import ModelFacts
from vllm_surgery.model.tensor_info import TensorInfo

if TYPE_CHECKING:
    from pathlib import Path

DOWN = "model.layers.0.mlp.down_proj.weight"
SHARD = "model-00002-of-00003.safetensors"


def as_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


# Reading


@pytest.mark.parametrize("shards", [1, 3])
def test_every_tensor_is_named_with_format_and_shape(tmp_path: Path, shards: int) -> None:
    tensors = mlp_tensors((6, 8), dtype="BF16")
    folder = ModelFolder(write_folder(tmp_path, tensors, config_of((6, 8)), shards=shards))

    assert {info.name: info for info in folder.tensors} == {name: item.info(name) for name, item in tensors.items()}


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16", "F8_E4M3", "I8"])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_slice_is_what_safetensors_itself_reads(tmp_path: Path, dtype: str, axis: int) -> None:
    folder = ModelFolder(write_model(tmp_path, (6, 8), dtype=dtype))

    with safe_open(tmp_path / "model.safetensors", "pt") as library:
        tensor = library.get_tensor(DOWN)
    for index in range(tensor.shape[axis]):
        assert folder.read_slice(DOWN, axis, index) == as_bytes(tensor.select(axis, index))


@pytest.mark.parametrize(("shape", "axis"), [((3,), 0), ((3, 4, 5), 0), ((3, 4, 5), 1), ((3, 4, 5), 2), ((3, 4), None)])
def test_a_slice_of_any_shape_is_what_torch_selects(tmp_path: Path, shape: tuple[int, ...], axis: int | None) -> None:
    folder = ModelFolder(write_folder(tmp_path, {"t": random_tensor("BF16", shape)}, {}))

    with safe_open(tmp_path / "model.safetensors", "pt") as library:
        tensor = library.get_tensor("t")
    tensor, along = (tensor.unsqueeze(0), 0) if axis is None else (tensor, axis)
    for index in range(tensor.shape[along]):
        assert folder.read_slice("t", axis, index) == as_bytes(tensor.select(along, index).reshape(-1))


def test_consolidated_files_are_left_out(tmp_path: Path) -> None:
    write_model(tmp_path)
    write_safetensors(tmp_path / "consolidated.safetensors", {"other": random_tensor("F32", (2, 2))})

    assert "other" not in {info.name for info in ModelFolder(tmp_path).tensors}


def test_consolidated_files_are_read_where_there_are_no_others(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "consolidated.safetensors")

    assert DOWN in {info.name for info in ModelFolder(tmp_path).tensors}


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path)
    write_safetensors(tmp_path / "other.safetensors", {DOWN: random_tensor("F32", (4, 6))})

    assert refusal(lambda: ModelFolder(tmp_path).tensors, CheckpointError) == (
        f"{tmp_path}: {DOWN} is both in model.safetensors and in other.safetensors, of which engines load one or the "
        "other; remove one of the files"
    )


def test_files_that_the_index_does_not_name_are_left_out(tmp_path: Path) -> None:
    write_model(tmp_path, shards=3)
    write_safetensors(tmp_path / "other.safetensors", {"other": random_tensor("F32", (2, 2))})

    assert "other" not in {info.name for info in ModelFolder(tmp_path).tensors}


# Facts


def test_facts_are_those_of_the_config(tmp_path: Path) -> None:
    folder = ModelFolder(write_model(tmp_path, (6, 6, 6)))

    assert folder.facts == ModelFacts(architectures=("LlamaForCausalLM",), num_hidden_layers=3, hidden_size=4)


def test_facts_of_a_multimodal_model_are_those_of_its_text_model() -> None:
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "num_hidden_layers": 99,
        "text_config": {"num_hidden_layers": 34, "hidden_size": 8},
        "vision_config": {"num_hidden_layers": 27, "hidden_size": 9},
    }

    facts = ModelFacts.from_config(config)

    assert (facts.architectures, facts.num_hidden_layers, facts.hidden_size) == (
        ("Gemma3ForConditionalGeneration",), 34, 8,
    )  # fmt: skip


@pytest.mark.parametrize("key", ["num_experts", "num_local_experts", "n_routed_experts"])
def test_experts_have_several_names(key: str) -> None:
    assert ModelFacts.from_config({key: 64}).num_experts == 64


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"architectures": None, "num_hidden_layers": None, "text_config": None, "quantization_config": None},
        {"architectures": "LlamaForCausalLM", "num_hidden_layers": "30", "hidden_size": 4.5, "num_experts": True},
        {"architectures": 5, "text_config": [], "quantization_config": "fp8", "num_experts": 0},
        {"architectures": {}, "num_hidden_layers": [], "hidden_size": {}},
    ],
)
def test_what_a_config_does_not_say_properly_is_not_known(config: dict[str, Any]) -> None:
    assert ModelFacts.from_config(config) == ModelFacts()


@pytest.mark.parametrize("layers", [-1, 10_001, 1_000_000_000, 10**4_000])
def test_a_number_of_layers_that_no_model_has_is_refused(tmp_path: Path, layers: int) -> None:
    folder = write_folder(tmp_path, {}, {"num_hidden_layers": layers})
    reason = f"{tmp_path}/config.json: a model can have 0 to 10000 layers, and this one says that it has {layers}"

    assert refusal(lambda: ModelFolder(folder).facts, CheckpointError) == one_line(reason)


def test_a_quantised_model_says_how() -> None:
    assert ModelFacts.from_config({"quantization_config": {"quant_method": "fp8"}}).quantization == "fp8"
    assert ModelFacts.from_config({"quantization_config": {}}).quantization == "unnamed"


@pytest.mark.parametrize(
    ("place", "base", "revision"),
    [
        ("models--gpt2/snapshots/607a30d", "gpt2", "607a30d"),
        ("models--meta-llama--Llama-3.2-1B/snapshots/4e20de3", "meta-llama/Llama-3.2-1B", "4e20de3"),
        ("models--org--a--b/snapshots/1", "org/a--b", "1"),
        ("models--org--a/snapshots", None, None),
        ("models--org--a/snapshots/1/sub", None, None),
        ("xmodels--org--a/snapshots/1", None, None),
        ("plain", None, None),
    ],
)
def test_base_and_revision_are_those_of_the_hubs_cache(
    tmp_path: Path, place: str, base: str | None, revision: str | None
) -> None:
    facts = ModelFolder(write_model(tmp_path / place)).facts

    assert (facts.base, facts.revision) == (base, revision)


# Refusals


def test_a_missing_folder_is_wrong_usage(tmp_path: Path) -> None:
    missing = tmp_path / "none"

    assert refusal(lambda: ModelFolder(missing), UsageError) == f"{missing}: no such model folder"


@pytest.mark.parametrize("path", ["a\0b", "a\nb", "x" * 5000])
def test_a_path_that_cannot_be_is_wrong_usage(path: str) -> None:
    assert refusal(lambda: ModelFolder(path), UsageError)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")

    assert refusal(lambda: ModelFolder(file), UsageError) == f"{file}: no such model folder"


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    assert refusal(lambda: ModelFolder(tmp_path), CheckpointError) == (
        f"{tmp_path}: has no config.json, so it is no Hugging Face model folder"
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "can't be read as JSON: Expecting value: line 1 column 1 (char 0)"),
        (b"{", "can't be read as JSON: "),
        (b"\xff\xfe\xff", "can't be read as JSON: "),
        (b"[" * 200_000, "can't be read as JSON: "),
        (b"[]", "is not a JSON object"),
        (b"null", "is not a JSON object"),
    ],
)
def test_a_config_that_is_no_json_object_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "config.json").write_bytes(content)

    assert refusal(lambda: ModelFolder(tmp_path), CheckpointError).startswith(f"{tmp_path}/config.json: {reason}")


def test_a_config_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()

    assert refusal(lambda: ModelFolder(tmp_path), CheckpointError).startswith(f"{tmp_path}/config.json: ")


def test_a_folder_without_tensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")

    assert refusal(lambda: ModelFolder(tmp_path).tensors, CheckpointError) == f"{tmp_path}: has no safetensors files"


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_model(tmp_path, shards=3)
    (tmp_path / SHARD).unlink()

    assert refusal(lambda: ModelFolder(tmp_path).tensors, CheckpointError) == (
        f"{tmp_path}: {SHARD} is named by the index but missing"
    )


def test_a_link_to_nothing_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "blob")

    assert refusal(lambda: ModelFolder(tmp_path).tensors, CheckpointError).startswith(
        f"{tmp_path}/model.safetensors: is no safetensors file: "
    )


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "/etc/passwd",
        "sub/x.safetensors",
        "..",
        "",
        ".",
        "a\0b",
        "a\nb",
        "x" * 5000,
        5,
        None,
        [],
    ],
)
def test_an_index_that_points_elsewhere_is_refused(tmp_path: Path, name: object) -> None:
    write_model(tmp_path / "model")
    (tmp_path / "model" / "sub").mkdir()
    for elsewhere in (tmp_path / "outside.safetensors", tmp_path / "model" / "sub" / "x.safetensors"):
        write_safetensors(elsewhere, {DOWN: random_tensor("F32", (4, 6))})
    (tmp_path / "model" / INDEX_FILE).write_text(json.dumps({"weight_map": {DOWN: name}}))

    assert refusal(lambda: ModelFolder(tmp_path / "model").tensors, CheckpointError)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": "x"}'])
def test_an_index_without_a_map_is_refused(tmp_path: Path, content: str) -> None:
    write_model(tmp_path)
    (tmp_path / INDEX_FILE).write_text(content)

    assert refusal(lambda: ModelFolder(tmp_path).tensors, CheckpointError).startswith(f"{tmp_path}/{INDEX_FILE}: ")


def entry(**changes: object) -> bytes:
    return json.dumps({"t": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **changes}}).encode()


HUGE = 1 << 32


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"{", "Expecting property name enclosed in double quotes"),
        (b"[]", "'list' object has no attribute 'items'"),
        (b"\xff\xff", "'utf-8' codec can't decode"),
        (b"[" * 200_000, "maximum recursion depth exceeded"),
        (b'{"t": 1}', "'int' object is not subscriptable"),
        (b'{"t": {}}', "its header has an entry without 'data_offsets'"),
        (b'{"t": {"dtype": "F32", "data_offsets": [0, 16]}}', "its header has an entry without 'shape'"),
        (entry(data_offsets=[0, 17]), "the file ends before t"),
        (entry(data_offsets=[0, HUGE]), "the file ends before t"),
        (entry(data_offsets=[-16, 0]), "t has [-16, 0] where sizes stand"),
        (entry(data_offsets=[0.0, 16.0]), "t has [0.0, 16.0] where sizes stand"),
        (entry(data_offsets=[16, 0]), "t ends before it starts"),
        (entry()[:-1] + b", " + entry()[1:], "t stands twice in its header"),
        (entry()[:-1] + b", " + entry().replace(b'"t"', b'"u"')[1:], "t and u share bytes"),
        (entry()[:-1] + b', "u": {"dtype": "F32", "shape": [], "data_offsets": [12, 16]}}', "t and u share bytes"),
        (entry(data_offsets=[0]), "not enough values to unpack"),
        (entry(data_offsets=[0, 8, 16]), "too many values to unpack"),
        (entry(data_offsets="ab"), "t has 'ab' where sizes stand"),
        (entry(shape=[2, 3]), "t has 16 bytes, which is not its shape's size"),
        (entry(shape=[-2, -2]), "t has [-2, -2] where sizes stand"),
        (entry(shape=[2.5, 2]), "t has [2.5, 2] where sizes stand"),
        (entry(shape=[True, 4]), "t has [True, 4] where sizes stand"),
        (entry(shape=[float("inf")]), "t has [inf] where sizes stand"),
        (entry(shape=4), "t has 4 where sizes stand"),
        # Sizes whose product is 0 in 64 bits, as the empty range is.
        (entry(shape=[HUGE, HUGE], data_offsets=[0, 0]), "t has 0 bytes, which is not its shape's size"),
        (entry(dtype="F64"), "t has 16 bytes, which is not its shape's size"),
        (entry(dtype="F2", shape=[129]), "t has 16 bytes, fewer bits than its shape has numbers"),
        (
            entry(shape=[HUGE, 0], data_offsets=[0, 0]),
            f"t is empty and {HUGE} long, which no tensor of a model is",
        ),
    ],
)  # fmt: skip
def test_a_header_that_lies_is_refused(tmp_path: Path, header: bytes, reason: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    write_raw(tmp_path / "model.safetensors", header, bytes(16))

    assert refusal(lambda: ModelFolder(tmp_path).tensors, CheckpointError).startswith(
        f"{tmp_path}/model.safetensors: is no safetensors file: {reason}"
    )


@pytest.mark.parametrize("length", [0, 3, 100_000_001, (1 << 64) - 1])
def test_a_length_that_lies_is_refused(tmp_path: Path, length: int) -> None:
    (tmp_path / "config.json").write_text("{}")
    write_raw(tmp_path / "model.safetensors", entry(), bytes(16), length)

    assert refusal(lambda: ModelFolder(tmp_path).tensors, CheckpointError).startswith(
        f"{tmp_path}/model.safetensors: is no safetensors file: "
    )


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize(
    ("name", "what"), [("config.json", "can't be read as JSON"), ("model.safetensors", "is no safetensors file")]
)
def test_a_git_lfs_pointer_says_what_to_do(tmp_path: Path, name: str, what: str) -> None:
    model = write_model(tmp_path)
    (model / name).write_bytes(POINTER)
    said = refusal(lambda: ModelFolder(model).tensors, CheckpointError)
    assert (
        said == f"{model / name}: {what}: it is a Git LFS pointer; `git lfs pull` fetches the file that it stands for"
    )


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    file = write_model(tmp_path, (6,)) / "model.safetensors"
    whole = file.read_bytes()

    for size in range(0, len(whole), 7):
        file.write_bytes(whole[:size])

        assert refusal(lambda: ModelFolder(tmp_path).tensors, CheckpointError)


@pytest.mark.parametrize(
    ("name", "axis", "index", "reason"),
    [
        (DOWN, 1, 6, f"{DOWN}: has no column 6: it is F32 [4, 6]"),
        (DOWN, 0, 4, f"{DOWN}: has no row 4: it is F32 [4, 6]"),
        (DOWN, 0, -1, f"{DOWN}: has no row -1: it is F32 [4, 6]"),
        (DOWN, 2, 0, f"{DOWN}: has no slice 0: it is F32 [4, 6]"),
        (DOWN, None, 1, f"{DOWN}: has no slice 1: it is F32 [4, 6]"),
        ("flat", 0, 4, "flat: has no slice 4: it is F32 [4]"),
        ("flat", 1, 0, "flat: has no slice 0: it is F32 [4]"),
        ("packed", 1, 0, "packed: has no column 0: it is F4 [2, 2]"),
    ],
)
def test_a_slice_that_is_not_there_is_refused(tmp_path: Path, name: str, axis: int, index: int, reason: str) -> None:
    write_model(tmp_path)
    header = {
        "flat": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
        "packed": {"dtype": "F4", "shape": [2, 2], "data_offsets": [16, 18]},
    }
    write_raw(tmp_path / "more.safetensors", json.dumps(header).encode(), bytes(18))

    assert refusal(lambda: ModelFolder(tmp_path).read_slice(name, axis, index), CheckpointError) == reason


def test_a_tensor_that_is_not_there_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path)

    assert refusal(lambda: ModelFolder(tmp_path).read_slice("other", 0, 0), CheckpointError) == (
        f"{tmp_path}: has no tensor other"
    )


def test_a_format_that_is_not_known_is_still_listed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    write_raw(tmp_path / "model.safetensors", entry(dtype="F6_E2M3", data_offsets=[0, 3]), bytes(16))

    assert ModelFolder(tmp_path).tensors == [TensorInfo("t", "F6_E2M3", (2, 2))]
