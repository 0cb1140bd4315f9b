# SPDX-License-Identifier: Apache-2.0
"""`project`: directions in patches and in files beside them, and everything that can be wrong with either."""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING, Any

import jsonschema
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.directions import project, unit, values_of, write_direction
from tests.examples import patch_data, refusal, zero
from vllm_surgery import Patch, PatchError, UsageError, load_patch
from vllm_surgery.patch.describe import describe
from vllm_surgery.patch.direction import MAX_HIDDEN, MAX_NUMBERS, Direction
from vllm_surgery.patch.direction_files import MAX_FILE_BYTES
from vllm_surgery.patch.files import write_patch_and_directions
from vllm_surgery.patch.folders import PatchLibrary
from vllm_surgery.patch.format import json_schema
from vllm_surgery.patch.watched_files import WatchedFiles

if TYPE_CHECKING:
    from pathlib import Path

UNITS = {"1": [2, "4-6"]}
INLINE = values_of(unit(8))


def write(folder: Path, direction: Any, name: str = "p.json") -> Path:
    file = folder / name
    file.write_text(json.dumps(patch_data(project(direction, UNITS))))
    return file


def refused(folder: Path, direction: Any) -> str:
    file = write(folder, direction)
    return refusal(lambda: load_patch(file), PatchError).removeprefix(f"{file}: edits[0].")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_file_and_the_same_numbers_are_one_patch(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = torch.from_numpy(unit(8)).to(dtype)
    save_file({"v": tensor}, tmp_path / "d.safetensors")
    named = {"file": "d.safetensors", "sha256": hashlib.sha256((tmp_path / "d.safetensors").read_bytes()).hexdigest()}
    from_file = load_patch(write(tmp_path, named))
    from_numbers = Patch.from_data(patch_data(project(values_of(tensor.float().numpy()), UNITS)))
    assert from_file == from_numbers
    assert from_file.digest == from_numbers.digest


def test_files_are_named_in_files_and_carried_as_numbers(tmp_path: Path) -> None:
    named = write_direction(tmp_path / "d.safetensors", v=unit(8))
    patch = load_patch(write(tmp_path, named))
    assert json.loads(patch.to_json())["edits"][0]["direction"] == named
    assert patch.to_data()["edits"][0]["direction"] == INLINE
    (tmp_path / "d.safetensors").unlink()
    assert Patch.from_data(patch.to_data()) == patch
    again = tmp_path / "again.yaml"
    write_direction(tmp_path / "d.safetensors", v=unit(8))
    again.write_text(patch.to_yaml())
    assert load_patch(again) == patch


def test_one_file_may_hold_several(tmp_path: Path) -> None:
    named = write_direction(tmp_path / "d.safetensors", a=unit(8), b=unit(8, 2)[None])
    assert load_patch(write(tmp_path, {**named, "tensor": "b"})).digest == (
        Patch.from_data(patch_data(project(values_of(unit(8, 2)), UNITS))).digest
    )
    assert refused(tmp_path, named) == ("direction.file: d.safetensors: holds 2 tensors (a, b); say which by `tensor`")
    assert refused(tmp_path, {**named, "tensor": "c"}) == "direction.file: d.safetensors: has no tensor 'c'"


def test_direction_and_strength_are_what_the_digest_covers() -> None:
    edits = [project(INLINE, UNITS), project(INLINE, UNITS, 0.5), project(values_of(unit(8, 2)), UNITS), zero(UNITS)]
    edits.append(project(INLINE, UNITS, kind="shared"))
    assert len({Patch.from_data(patch_data(edit)).digest for edit in edits}) == len(edits)
    apart = patch_data(project(INLINE, {"1": [2]}), project(INLINE, {"1": ["4-6"]}))
    assert Patch.from_data(apart).digest == Patch.from_data(patch_data(edits[0])).digest


def test_a_strength_of_one_need_not_be_said() -> None:
    edit = project(INLINE, UNITS)
    del edit["strength"]
    assert Patch.from_data(patch_data(edit)) == Patch.from_data(patch_data(project(INLINE, UNITS)))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (project(INLINE, UNITS, 0.0), "strength: a strength of 0 changes nothing; leave the edit out"),
        (project(INLINE, UNITS, 1e60), "strength: 1e+60 is too large for float32"),
        (project(INLINE, UNITS, float("nan")), "strength: nan is not a finite number"),
        ({"op": "project", "neurons": UNITS}, "direction: is missing"),
        ({"op": "project", "direction": INLINE}, "names no units; give `neurons` or `shared`"),
        (
            project(INLINE, UNITS, kind="experts"),
            "experts: `project` is for columns of down projections, which are neurons; give `neurons`",
        ),
        (project("x", UNITS), "direction: expected {file, sha256} or {values}, got str"),
        (project({"values": 3}, UNITS), "direction.values: expected base64 text, got int"),
        (project({"values": "?"}, UNITS), "direction.values: is not base64: Only base64 data is allowed"),
        (project({"values": ""}, UNITS), "direction.values: 0 bytes are no float32 numbers"),
        (project({"values": "AAAAAAA="}, UNITS), "direction.values: 5 bytes are no float32 numbers"),
        (project({"vector": "x"}, UNITS), "direction.vector: is not a key of this format"),
        (project({**INLINE, "file": "d.safetensors"}, UNITS), "direction.file: stands beside `values`"),
        (project(values_of(np.zeros(8)), UNITS), "direction.values: the direction has the length 0, not 1"),
        (project(values_of(3 * unit(8)), UNITS), "direction.values: the direction has the length 3, not 1; divide it"),
        (
            project(values_of(np.full(8, np.nan)), UNITS),
            "direction.values: the direction holds a number that isn't finite",
        ),
        (
            project(values_of(np.array([1.0, np.inf])), UNITS),
            "direction.values: the direction holds a number that isn't finite",
        ),
        (
            project(values_of(unit(MAX_HIDDEN + 1)), UNITS),
            "direction.values: a direction of 65537 numbers; at most 65536",
        ),
    ],
)
def test_nonsense_is_refused_with_its_place(edit: dict[str, Any], said: str) -> None:
    text = refusal(lambda: Patch.from_data(patch_data(edit), "p"), PatchError)
    assert text.removeprefix("p: edits[0]").lstrip(".: ").startswith(said)


def test_all_directions_together_are_bounded() -> None:
    direction = values_of(unit(MAX_HIDDEN))
    edits = [project(direction, {str(layer): [0]}) for layer in range(MAX_NUMBERS // MAX_HIDDEN + 1)]
    assert refusal(lambda: Patch.from_data(patch_data(*edits), "p"), PatchError) == (
        "p: edits: directions of 589824 numbers in all; a patch may have at most 524288"
    )


@pytest.mark.parametrize(
    "name",
    ["../d.safetensors", "/etc/d.safetensors", "sub/d.safetensors", "..", "", ".d.safetensors", "d.bin", "d\n.safetensors",
     "..\\d.safetensors", "~/d.safetensors", "d\x00.safetensors", "d" * 300 + ".safetensors"],
)  # fmt: skip
def test_a_file_is_a_name_without_a_folder(tmp_path: Path, name: str) -> None:
    direction = {"file": name, "sha256": "0" * 64}
    assert refused(tmp_path, direction).startswith(
        "direction.file: must be the name of a .safetensors file beside the patch, without a folder, got"
    )


def test_a_patch_that_is_no_file_names_none() -> None:
    named = {"file": "d.safetensors", "sha256": "0" * 64}
    assert refusal(lambda: Patch.from_data(patch_data(project(named, UNITS)), "p"), PatchError) == (
        "p: edits[0].direction.file: only a patch that is a file itself can name one beside it; "
        "give the numbers as `values`"
    )


def test_what_is_wrong_with_a_file_is_said(tmp_path: Path) -> None:
    named = write_direction(tmp_path / "d.safetensors", v=unit(8))
    wrong = {**named, "sha256": "0" * 64}
    assert refused(tmp_path, wrong) == (
        "direction.file: d.safetensors: is another file than the patch was written with: its sha256 is "
        f"{named['sha256']}"
    )
    assert refused(tmp_path, {**named, "sha256": "x"}) == "direction.sha256: must be 64 hexadecimal digits, got 'x'"
    assert refused(tmp_path, {"file": "d.safetensors"}) == "direction.sha256: is missing"
    assert refused(tmp_path, {**named, "file": "e.safetensors"}) == (
        "direction.file: e.safetensors: No such file or directory"
    )
    for shape, said in (((2, 4), "[2, 4]"), ((1, 2, 4), "[1, 2, 4]")):
        square = write_direction(tmp_path / "s.safetensors", v=unit(8).reshape(shape))
        assert refused(tmp_path, square) == (
            f"direction.file: s.safetensors: v has the shape {said}, and a direction is one row of numbers"
        )
    whole = write_direction(tmp_path / "i.safetensors", v=np.arange(8))
    assert refused(tmp_path, whole) == (
        "direction.file: i.safetensors: v is stored as I64; save it as F32, F16 or BF16"
    )
    (tmp_path / "n.safetensors").write_bytes(b"nothing of the kind")
    assert refused(tmp_path, {**named, "file": "n.safetensors"}).startswith(
        "direction.file: n.safetensors: is no safetensors file: "
    )


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "d.safetensors").open("wb") as file:
        file.truncate(1 << 30)
    assert refused(tmp_path, {"file": "d.safetensors", "sha256": "0" * 64}) == (
        f"direction.file: d.safetensors: a patch's directions may have {MAX_FILE_BYTES} bytes of files in all, "
        "and it has more"
    )


def test_pipes_and_links_that_lead_out_are_refused(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    named = write_direction(outside / "d.safetensors", v=unit(8))
    (inside / "d.safetensors").symlink_to(outside / "d.safetensors")
    assert refused(inside, named) == "direction.file: d.safetensors: is a link that leads out of its folder"
    os.mkfifo(inside / "p.safetensors")
    assert refused(inside, {**named, "file": "p.safetensors"}) == (
        "direction.file: p.safetensors: is not a regular file"
    )
    (inside / "c.safetensors").symlink_to("c.safetensors")
    assert "c.safetensors: " in refused(inside, {**named, "file": "c.safetensors"})


def test_links_inside_a_folder_are_followed(tmp_path: Path) -> None:
    """Kubernetes lays mounted files out so."""
    (tmp_path / "..data").mkdir()
    named = write_direction(tmp_path / "..data" / "d.safetensors", v=unit(8))
    (tmp_path / "d.safetensors").symlink_to("..data/d.safetensors")
    assert load_patch(write(tmp_path, named)).digest


def test_a_unit_is_named_once_whatever_is_done_to_it() -> None:
    twice = patch_data(project(INLINE, UNITS), zero({"1": [5]}))
    assert refusal(lambda: Patch.from_data(twice, "p"), PatchError) == (
        "p: edits[1].neurons.1: neurons 5 of layer 1: already named in edits[0].neurons.1"
    )


def test_the_schema_takes_both_forms() -> None:
    validator = jsonschema.Draft202012Validator(json_schema())
    named = {"file": "d.safetensors", "sha256": "0" * 64, "tensor": "v"}
    for direction in (INLINE, named):
        assert validator.is_valid(patch_data(project(direction, UNITS)))
    for wrong in (
        {**INLINE, **named},
        {"file": "../d.safetensors", "sha256": "0" * 64},
        {"file": "d.safetensors"},
        {},
        "x",
    ):
        assert not validator.is_valid(patch_data(project(wrong, UNITS)))
    assert not validator.is_valid(patch_data(project(INLINE, UNITS, 0)))


def test_it_is_said_in_words() -> None:
    short = Direction(unit(8).tobytes()).digest[:8]
    assert f"neurons without 2 x direction {short}: layer 1: 2, 4-6" in (
        describe(Patch.from_data(patch_data(project(INLINE, UNITS, 2.0))))
    )


def test_folders_offer_patches_with_the_files_beside_them(tmp_path: Path) -> None:
    named = write_direction(tmp_path / "d.safetensors", v=unit(8))
    write(tmp_path, named, "loops.json")
    assert PatchLibrary([tmp_path]).load("loops").patch.to_data()["edits"][0]["direction"] == INLINE


def test_a_followed_patch_becomes_whole_when_its_direction_comes(tmp_path: Path) -> None:
    named = write_direction(tmp_path / "d.safetensors", v=unit(8))
    content = (tmp_path / "d.safetensors").read_bytes()
    (tmp_path / "d.safetensors").unlink()
    watched = WatchedFiles([write(tmp_path, named)])
    before = watched.read()
    assert before.patches is None
    assert before.error.startswith("p.json: edits[0].direction.file: d.safetensors: No such file")
    (tmp_path / "d.safetensors").write_bytes(content)
    after = watched.read()
    assert after.patches is not None
    assert after.fingerprint != before.fingerprint


def test_numbers_are_written_beside_a_patch(tmp_path: Path) -> None:
    other = values_of(unit(8, 2))
    data = patch_data(project(INLINE, {"1": [1]}), project(other, {"2": [1]}), project(INLINE, {"3": [1]}, 0.5))
    patch = Patch.from_data(data)
    file = tmp_path / "found.yaml"
    written = write_patch_and_directions(patch, file)
    assert load_patch(file) == written == patch
    assert load_patch(file).digest == patch.digest
    assert "values" not in file.read_text()
    assert {item.name for item in tmp_path.iterdir()} == {"found.yaml", "found.safetensors"}
    assert write_patch_and_directions(patch, file) == patch, "its own files may be written anew"


def test_a_file_of_another_kind_beside_it_is_not_written_over(tmp_path: Path) -> None:
    patch = Patch.from_data(patch_data(project(INLINE, {"1": [1]})))
    weights, file = tmp_path / "model.safetensors", tmp_path / "model.yaml"
    for content in ({"model.norm.weight": torch.ones(8)}, None):
        save_file(content, weights) if content else weights.write_bytes(b"\0" * 64)
        before = weights.read_bytes()
        said = refusal(lambda: write_patch_and_directions(patch, file), UsageError)
        assert said == f"{weights}: is there, and is no file of directions; give the patch another name"
        assert weights.read_bytes() == before
        assert not file.exists()
