# SPDX-License-Identifier: Apache-2.0
"""Directions taken from columns: the arithmetic, the plan, bakes, differences and adapters of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.directions import edit_columns, lose, project, unit, values_of, write_direction
from tests.examples import patch_data, patches_of, refusal, zero
from tests.folders import Tensor, config_of, mlp_tensors, write_folder, write_model
from tests.models import down
from vllm_surgery import MismatchError, ModelFolder, SurgeryError
from vllm_surgery.cli import main
from vllm_surgery.evaluation.shams import make_shams
from vllm_surgery.offline.bake import bake
from vllm_surgery.offline.diff import diff
from vllm_surgery.offline.export_lora import export_lora
from vllm_surgery.patch.direction import Direction, Projection
from vllm_surgery.patch.files import load_patch
from vllm_surgery.planning.check import check_patches
from vllm_surgery.planning.planner import TensorEdit
from vllm_surgery.weights.arithmetic import apply_edit, ordered_sum
from vllm_surgery.weights.tensors import dtype_word

if TYPE_CHECKING:
    from pathlib import Path

WIDTH, HIDDEN = 48, 32
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def of(seed: int = 1, hidden: int = HIDDEN) -> Direction:
    return Direction(unit(hidden, seed).tobytes())


def edit_of(tensor: torch.Tensor, gains: dict[int, Any]) -> TensorEdit:
    return TensorEdit("w", dtype_word(tensor.dtype), tuple(tensor.shape), 1, tuple(gains), tuple(gains.values()))


def weights(dtype: torch.dtype, width: int = WIDTH, hidden: int = HIDDEN) -> torch.Tensor:
    return torch.randn(hidden, width, generator=torch.Generator().manual_seed(5)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strength", [1.0, 2.0, -0.5, 0.3])
def test_columns_lose_the_direction_and_others_stay(dtype: torch.dtype, strength: float) -> None:
    tensor = weights(dtype)
    edited = apply_edit(tensor, edit_of(tensor, {3: Projection(of(), strength), 40: Projection(of(2), strength)}))
    expected = tensor.clone()
    for column, seed in ((3, 1), (40, 2)):
        if dtype == torch.float64:
            u = torch.from_numpy(unit(HIDDEN, seed)).double()
            removed = u * (u @ tensor[:, column]) * strength / (u @ u)
            torch.testing.assert_close(edited[:, column], tensor[:, column] - removed, rtol=1e-13, atol=1e-14)
            expected[:, column] = edited[:, column]
        else:
            expected[:, column] = lose(tensor[:, column], unit(HIDDEN, seed), strength)
    assert torch.equal(edited, expected)


def test_what_is_left_of_the_direction_is_rounding() -> None:
    tensor = weights(torch.float64)
    edited = apply_edit(tensor, edit_of(tensor, dict.fromkeys(range(WIDTH), Projection(of(), 1.0))))
    u = torch.from_numpy(unit(HIDDEN)).double()
    assert float((u @ edited).abs().max()) < 1e-14
    mirrored = apply_edit(tensor, edit_of(tensor, dict.fromkeys(range(WIDTH), Projection(of(), 2.0))))
    torch.testing.assert_close(u @ mirrored, -(u @ tensor))


def test_gains_and_directions_may_be_in_one_tensor() -> None:
    tensor = weights(torch.bfloat16)
    edited = apply_edit(tensor, edit_of(tensor, {1: -1.0, 2: Projection(of(), 1.0), 3: 0.5}))
    assert torch.equal(edited[:, 1], -tensor[:, 1])
    assert torch.equal(edited[:, 2], lose(tensor[:, 2], unit(HIDDEN), 1.0))
    assert torch.equal(edited[:, 3], tensor[:, 3] * 0.5)


def test_a_column_changes_alike_whoever_else_is_edited() -> None:
    """So that a rank, a slice and a whole checkpoint hold the same bits."""
    tensor = weights(torch.float32, width=300, hidden=77)
    projection = Projection(Direction(unit(77).tobytes()), 0.7)
    whole = apply_edit(tensor, edit_of(tensor, dict.fromkeys(range(300), projection)))
    for column in (0, 131, 299):
        alone = apply_edit(tensor, edit_of(tensor, {column: projection}))
        assert torch.equal(alone[:, column], whole[:, column])
        sliced = tensor[:, column : column + 1].clone()
        assert torch.equal(apply_edit(sliced, edit_of(sliced, {0: projection}))[:, 0], whole[:, column])


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 64, 77])
def test_a_sum_has_one_order(rows: int) -> None:
    numbers = torch.randn(rows, 5, dtype=torch.float64)
    torch.testing.assert_close(ordered_sum(numbers), numbers.sum(0))
    assert torch.equal(ordered_sum(numbers)[2], ordered_sum(numbers[:, 2:3].clone())[0])


def test_weights_that_are_not_finite_or_become_so_are_refused() -> None:
    tensor = weights(torch.float16)
    tensor[3, 4] = torch.inf
    assert refusal(lambda: apply_edit(tensor, edit_of(tensor, {4: Projection(of(), 1.0)}))) == (
        "w: holds a weight that isn't finite, from which no direction can be taken"
    )
    assert refusal(lambda: apply_edit(tensor, edit_of(tensor, {5: Projection(of(), 1e9)})), SurgeryError) == (
        "w: the edit makes weights too large for F16; use a smaller strength"
    )


@pytest.fixture
def model(tmp_path: Path) -> ModelFolder:
    return ModelFolder(write_model(tmp_path / "model", (WIDTH, WIDTH), hidden=HIDDEN))


EDIT = project(values_of(unit(HIDDEN)), {"1": [3, "10-30"]}, 0.75)
COLUMNS = (3, *range(10, 31))


def test_a_bake_is_the_arithmetic_and_its_difference_the_patch(model: ModelFolder, tmp_path: Path) -> None:
    wanted = patches_of(EDIT, zero({"0": [1]}))
    done = bake(wanted, model, tmp_path / "baked")
    assert (done.units, done.tensors) == (len(COLUMNS) + 1, 2)
    by_hand = edit_columns(model.path, tmp_path / "hand", {(down(1), column): (0.75, 1) for column in COLUMNS})
    name = "model.safetensors"
    assert torch.equal(load_file(tmp_path / "baked" / name)[down(1)], load_file(by_hand / name)[down(1)])

    found = diff(model, ModelFolder(tmp_path / "baked"))
    assert (found.unexplained, found.notes, found.gains) == ([], [], {(0, 1): 0.0})
    again = found.patch("small", model)
    assert again is not None
    guarded = patches_of(EDIT, zero({"0": [1]}), model=again.model.given())
    assert again.digest == guarded.members[0].patch.digest


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_without_a_record_the_direction_is_found_by_rank(tmp_path: Path, dtype: str) -> None:
    model = ModelFolder(write_model(tmp_path / "model", (WIDTH, WIDTH), hidden=HIDDEN, dtype=dtype))
    columns = {(down(1), column): (0.75, 1) for column in COLUMNS}
    edited = ModelFolder(edit_columns(model.path, tmp_path / "hand", columns))
    found = diff(model, edited)
    assert found.unexplained == []
    assert found.gains == {}
    (((kind, layer), lost),) = found.lost.items()
    assert (kind, layer, lost.columns, lost.projection.strength) == ("neurons", 1, COLUMNS, 0.75)
    aligned = abs(float(lost.projection.direction.values @ unit(HIDDEN)))
    assert aligned == pytest.approx(1, abs={"F32": 1e-6, "F16": 1e-5, "BF16": 1e-3}[dtype])
    assert found.notes[0].startswith("22 columns of layer 1 lost a direction, which was found by their rank: with it ")
    assert lost.off < HIDDEN * len(COLUMNS) * 0.2
    assert found.patch("small", model) is not None


@pytest.mark.parametrize("seeds", [(1, 2), (1,)])
def test_other_changes_of_columns_are_no_lost_direction(
    model: ModelFolder, tmp_path: Path, seeds: tuple[int, ...]
) -> None:
    """Of two directions, or of one column alone, which any vector would explain."""
    columns = {(down(1), number): (0.5, seed) for number, seed in enumerate(seeds)}
    found = diff(model, ModelFolder(edit_columns(model.path, tmp_path / "hand", columns)))
    assert found.lost == {}
    assert [item.reason for item in found.unexplained] == [
        f"{len(seeds)} column(s) ({', '.join(map(str, range(len(seeds))))}) changed by more than a gain"
    ]


def test_random_columns_are_no_lost_direction(model: ModelFolder, tmp_path: Path) -> None:
    edited = edit_columns(model.path, tmp_path / "hand", {(down(1), 0): (0.5, 1)})
    tensors = load_file(edited / "model.safetensors")
    tensors[down(1)][:, :5] = torch.randn(HIDDEN, 5)
    save_file(tensors, edited / "model.safetensors")
    found = diff(model, ModelFolder(edited))
    assert (found.lost, len(found.unexplained)) == ({}, 1)


def test_a_record_that_lies_is_not_believed(model: ModelFolder, tmp_path: Path) -> None:
    columns = {(down(1), column): (0.75, 1) for column in COLUMNS}
    edited = edit_columns(model.path, tmp_path / "hand", columns)
    lie = patch_data(project(values_of(unit(HIDDEN, 9)), {"1": ["0-47"]}))
    for record in ({"baked": [{"patches": [lie]}]}, {"baked": 7}, {"baked": [{"patches": [{"name": "x"}]}]}):
        (edited / "vllm_surgery.json").write_text(json.dumps(record))
        assert diff(model, ModelFolder(edited)).lost["neurons", 1].columns == COLUMNS


def test_the_command_writes_numbers_beside_the_patch(
    model: ModelFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bake(patches_of(EDIT), model, tmp_path / "baked")
    out = tmp_path / "found.yaml"
    assert main(["diff", str(model.path), str(tmp_path / "baked"), "-o", str(out)]) == 0
    assert f"{len(COLUMNS)} columns without a direction" in capsys.readouterr().out
    assert load_patch(out).to_data()["edits"] == [EDIT]
    assert (tmp_path / "found.safetensors").is_file()


def test_a_patch_with_a_file_is_checked_shown_sealed_and_baked(
    model: ModelFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = write_direction(tmp_path / "loops.safetensors", direction=unit(HIDDEN))
    file = tmp_path / "p.json"
    file.write_text(json.dumps(patch_data(project(named, {"1": [3, 4]}))))
    assert main(["seal", str(file), "--model", str(model.path)]) == 0
    assert json.loads(file.read_text())["edits"][0]["direction"] == named
    assert sorted(load_patch(file).seal) == ["neurons/1/3", "neurons/1/4"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert main(["seal", str(file), "--model", str(model.path), "-o", str(elsewhere / "p.json")]) == 0
    assert "values" in json.loads((elsewhere / "p.json").read_text())["edits"][0]["direction"]
    for command in ("check", "bake"):
        more = ["--out", str(tmp_path / "baked")] if command == "bake" else []
        assert main([command, str(file), "--model", str(model.path), *more]) == 0
    assert main(["check", str(file), "--model", str(model.path), "--json"]) == 0
    out = capsys.readouterr().out
    assert "columns: 3 without 1 x direction" in out


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (
            project(values_of(unit(HIDDEN - 1)), {"1": [3]}),
            f"edits[0].neurons.1: the direction has {HIDDEN - 1} numbers, {down(1)} writes {HIDDEN}",
        ),
        (
            project(values_of(unit(HIDDEN)), {"1": [WIDTH]}),
            f"edits[0].neurons.1: index {WIDTH} is out of range: layer 1 has {WIDTH} neurons",
        ),
    ],
)
def test_another_models_direction_is_refused(model: ModelFolder, edit: dict[str, Any], said: str) -> None:
    for for_slots in (False, True):
        text = refusal(lambda slots=for_slots: check_patches(patches_of(edit), model, for_slots=slots), MismatchError)  # type: ignore[misc]
        assert text == f"p.yaml: {said}"


def test_codes_can_not_lose_a_direction(tmp_path: Path) -> None:
    tensors = mlp_tensors((6, 6), 4)
    name = down(1)
    tensors[name] = Tensor("F8_E4M3", (4, 6), bytes(24))
    config = config_of((6, 6), quantization_config={"quant_method": "fp8"})
    model = ModelFolder(write_folder(tmp_path, tensors, config))
    assert refusal(
        lambda: check_patches(patches_of(project(values_of(unit(4)), {"1": [3]})), model), MismatchError
    ) == (
        f"p.yaml: edits[0].neurons.1: {name} is stored as F8_E4M3, and an edit by a direction computes weights anew, "
        "which BF16, F16, F32, F64 alone can hold"
    )


def test_an_adapter_holds_it(model: ModelFolder, tmp_path: Path) -> None:
    done = export_lora(patches_of(EDIT), model, tmp_path / "adapter")
    bake(patches_of(EDIT), model, tmp_path / "baked")
    before, after = (load_file(folder / "model.safetensors")[down(1)] for folder in (model.path, tmp_path / "baked"))
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    a, b = (next(tensor for name, tensor in tensors.items() if f"lora_{part}" in name) for part in "AB")
    assert done.rank == len(COLUMNS)
    torch.testing.assert_close(before + b @ a, after, rtol=0, atol=2**-22)


def test_a_sham_takes_the_same_direction_from_other_columns(model: ModelFolder) -> None:
    patch = patches_of(project(values_of(unit(HIDDEN)), {"1": [3, 4]})).members[0].patch
    (sham,) = make_shams(patch, model, 1, seed=3)
    assert {edit.op for edit in sham.patch.edits} == {"project"}
    assert {unit.index for unit in sham.units}.isdisjoint({3, 4})
    np.testing.assert_array_equal(next(iter(sham.units.values())).direction.values, unit(HIDDEN))  # type: ignore[union-attr]
