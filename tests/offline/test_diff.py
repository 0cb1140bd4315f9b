# SPDX-License-Identifier: Apache-2.0
"""diff finds the patch that was baked, says what no patch can, and doesn't mind how a checkpoint is laid out."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.folders import config_of, mlp_tensors, random_tensor, write_folder, write_model
from tests.models import edit_by_hand, patch_of
from vllm_surgery import CheckpointError, ModelFolder, Patch, PatchSet
from vllm_surgery.cli import main
from vllm_surgery.offline import diff as module
from vllm_surgery.offline.bake import bake
from vllm_surgery.offline.diff import Diff, Unexplained, diff
from vllm_surgery.patch.patch_set import SourcedPatch
from vllm_surgery.planning.guard import guard_of

if TYPE_CHECKING:
    from collections.abc import Callable

HIDDEN = 64
DOWN = "model.layers.1.mlp.down_proj.weight"
UP = "model.layers.1.mlp.up_proj.weight"
GATE = "model.layers.1.mlp.gate_proj.weight"
DTYPES = ("F32", "BF16", "F16", "F64")


def make(folder: Path, **options: Any) -> Path:
    return write_model(folder, (6, 8), hidden=HIDDEN, **options)


def compare(base: Path, edited: Path) -> Diff:
    return diff(ModelFolder(base), ModelFolder(edited))


def change(folder: Path, **tensors: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    """Rewrites tensors of a folder with one file."""
    file = folder / "model.safetensors"
    content = load_file(file)
    for name, edit in tensors.items():
        content[name] = edit(content[name].clone()).contiguous()
    save_file(content, file, metadata={"format": "pt"})
    return folder


def scaled(axis: int, index: int, gain: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def edit(tensor: torch.Tensor) -> torch.Tensor:
        tensor.select(axis, index).mul_(gain)
        return tensor

    return edit


gains = st.sampled_from([-1.0, 0.0, 0.5, -0.8, 3.0, 5.0, 0.25, -2.5, 1.01])
units = st.tuples(st.integers(0, 1), st.integers(0, 5))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wanted=st.dictionaries(units, gains, min_size=1), dtype=st.sampled_from(DTYPES), shards=st.sampled_from([1, 2]))
def test_diff_of_a_bake_is_the_patch(wanted: dict[tuple[int, int], float], dtype: str, shards: int) -> None:
    with tempfile.TemporaryDirectory() as work:
        base = ModelFolder(make(Path(work) / "base", dtype=dtype, shards=shards))
        patch = Patch.from_data({**patch_of(wanted), "model": guard_of(base)})
        bake(PatchSet((SourcedPatch("p", patch),)), base, Path(work) / "baked")
        found = diff(base, ModelFolder(Path(work) / "baked"))
        assert (found.unexplained, found.notes) == ([], [])
        again = found.patch("test", base)
        assert again is not None
        assert again.digest == patch.digest


def test_equal_checkpoints_have_no_difference(tmp_path: Path) -> None:
    base = make(tmp_path / "base")
    assert compare(base, base) == Diff()
    assert compare(base, base).patch("x", ModelFolder(base)) is None


def test_equal_tensors_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, edited = make(tmp_path / "base"), change(make(tmp_path / "edited"), **{DOWN: scaled(1, 2, -1.0)})
    read: list[str] = []
    original = module.read_tensor
    monkeypatch.setattr(module, "read_tensor", lambda stored: read.append(stored.info.name) or original(stored))
    compare(base, edited)
    assert set(read) == {DOWN}


@pytest.mark.parametrize("gain", [-1.0, 0.0, 3.0])
def test_a_gain_on_an_up_row_is_a_gain_of_its_neuron(tmp_path: Path, gain: float) -> None:
    base, edited = make(tmp_path / "base"), change(make(tmp_path / "edited"), **{UP: scaled(0, 2, gain)})
    found = compare(base, edited)
    assert (found.gains, found.unexplained) == ({(1, 2): gain}, [])
    assert found.notes == [
        "1 gain(s) stand on rows of up projections; from the down projection, where a patch puts them, "
        "they give the same outputs"
    ]


def test_a_silent_gate_row_silences_its_neuron(tmp_path: Path) -> None:
    base, edited = make(tmp_path / "base"), change(make(tmp_path / "edited"), **{GATE: scaled(0, 2, 0.0)})
    assert compare(base, edited).gains == {(1, 2): 0.0}


def test_any_other_gate_row_is_no_gain(tmp_path: Path) -> None:
    base, edited = make(tmp_path / "base"), change(make(tmp_path / "edited"), **{GATE: scaled(0, 2, -1.0)})
    found = compare(base, edited)
    assert (found.gains, found.unexplained) == (
        {},
        [Unexplained(GATE, "1 row(s) (2) changed by more than a gain", HIDDEN)],
    )


def test_gains_on_up_and_down_multiply(tmp_path: Path) -> None:
    edited = change(make(tmp_path / "edited"), **{UP: scaled(0, 2, 3.0), DOWN: scaled(1, 2, -1.0)})
    assert compare(make(tmp_path / "base"), edited).gains == {(1, 2): -3.0}


def test_gains_that_cancel_are_no_edit(tmp_path: Path) -> None:
    edited = change(make(tmp_path / "edited"), **{UP: scaled(0, 2, -1.0), DOWN: scaled(1, 2, -1.0)})
    assert compare(make(tmp_path / "base"), edited).gains == {}


def test_what_no_gain_explains_is_listed_beside_what_one_does(tmp_path: Path) -> None:
    def edit(tensor: torch.Tensor) -> torch.Tensor:
        tensor[:, 2] *= -1
        tensor[5:9, 4] += 1
        return tensor

    found = compare(make(tmp_path / "base"), change(make(tmp_path / "edited"), **{DOWN: edit}))
    assert found.gains == {(1, 2): -1.0}
    assert found.unexplained == [Unexplained(DOWN, "1 column(s) (4) changed by more than a gain", 4)]


def test_a_tensor_of_no_unit_is_listed(tmp_path: Path) -> None:
    name = "model.embed_tokens.weight"
    edited = change(make(tmp_path / "edited"), **{name: scaled(0, 1, 2.0)})
    assert compare(make(tmp_path / "base"), edited).unexplained == [
        Unexplained(name, "holds no unit that a patch can name", HIDDEN)
    ]


def test_tensors_of_one_side_and_other_shapes_are_listed(tmp_path: Path) -> None:
    base_tensors = mlp_tensors((6, 8), HIDDEN) | {"lm_head.weight": random_tensor("F32", (3, 2))}
    edited_tensors = mlp_tensors((6, 9), HIDDEN) | {"score.weight": random_tensor("F32", (5,))}
    base = write_folder(tmp_path / "base", base_tensors, config_of((6, 8), HIDDEN))
    edited = write_folder(tmp_path / "edited", edited_tensors, config_of((6, 9), HIDDEN))
    told = {item.tensor: (item.reason, item.numbers) for item in compare(base, edited).unexplained}
    assert told == {
        GATE: (f"has the shape [9, {HIDDEN}], was [8, {HIDDEN}]", 9 * HIDDEN),
        UP: (f"has the shape [9, {HIDDEN}], was [8, {HIDDEN}]", 9 * HIDDEN),
        DOWN: (f"has the shape [{HIDDEN}, 9], was [{HIDDEN}, 8]", 9 * HIDDEN),
        "lm_head.weight": ("is in the base checkpoint alone", 6),
        "score.weight": ("is in the edited checkpoint alone", 5),
    }


def test_shards_dont_matter(tmp_path: Path) -> None:
    edited = change(make(tmp_path / "edited"), **{DOWN: scaled(1, 2, -1.0)})
    found = compare(make(tmp_path / "base", shards=3), edited)
    assert (found.gains, found.unexplained) == ({(1, 2): -1.0}, [])


@pytest.mark.parametrize("prefix", ["model.language_model", "language_model.model"])
def test_another_root_of_the_names_doesnt_matter(tmp_path: Path, prefix: str) -> None:
    config = config_of((6, 8), HIDDEN)
    base = write_folder(tmp_path / "base", mlp_tensors((6, 8), HIDDEN), config)
    edited = write_folder(tmp_path / "edited", mlp_tensors((6, 8), HIDDEN, prefix=prefix), config)
    change(edited, **{DOWN.replace("model", prefix, 1): scaled(1, 2, -1.0)})
    found = compare(base, edited)
    assert (found.gains, found.unexplained) == ({(1, 2): -1.0}, [])


@pytest.mark.parametrize("wide_first", [True, False])
def test_another_number_format_with_the_same_values_is_said(tmp_path: Path, wide_first: bool) -> None:
    narrow = make(tmp_path / "narrow", dtype="BF16")
    wide = make(tmp_path / "wide", dtype="BF16")
    change(wide, **{name: lambda tensor: tensor.float() for name in (DOWN, UP)})
    change(narrow if wide_first else wide, **{DOWN: scaled(1, 2, -0.5)})
    found = compare(wide, narrow) if wide_first else compare(narrow, wide)
    assert (found.gains, found.unexplained) == ({(1, 2): -0.5}, [])
    old, new = ("F32", "BF16") if wide_first else ("BF16", "F32")
    assert found.notes == [f"2 tensor(s) are stored as {new}, were {old}; compared as {new}"]


def test_quantised_tensors_that_differ_are_listed(tmp_path: Path) -> None:
    folders = [make(tmp_path / name) for name in ("base", "edited")]
    for number, folder in enumerate(folders):
        change(folder, **{DOWN: lambda tensor, number=number: torch.full_like(tensor, number).to(torch.float8_e4m3fn)})
    (item,) = compare(*folders).unexplained
    assert (item.tensor, item.reason) == (DOWN, "differs, and is stored as F8_E4M3")


def test_two_unrelated_models_are_refused(tmp_path: Path) -> None:
    base = make(tmp_path / "base")
    other = write_folder(tmp_path / "other", {"x": random_tensor("F32", (2,))}, config_of((6, 8)))
    with pytest.raises(CheckpointError, match=f"^{other}: has no tensor in common with {base}$"):
        compare(base, other)


def test_a_real_layout_edited_by_hand_comes_back(tmp_path: Path, family_model: Callable[[str], Path]) -> None:
    wanted = {(0, 0): -1.0, (3, 7): 0.0, (5, 127): 0.5, (11, 0): -0.8, (11, 1): 3.0}
    for family in ("Llama", "Gemma3"):
        edited = edit_by_hand(family_model(family), tmp_path / family, wanted)
        found = compare(family_model(family), edited)
        assert (found.gains, found.unexplained) == (wanted, [])


def test_the_command_prints_the_patch_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, edited = make(tmp_path / "base"), change(make(tmp_path / "edited"), **{DOWN: scaled(1, 2, -1.0)})
    assert main(["diff", str(base), str(edited), "--name", "found"]) == 0
    patch = Patch.parse(capsys.readouterr().out)
    assert (patch.name, patch.model.intermediate_size) == ("found", [6, 8])


def test_the_command_writes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, edited = make(tmp_path / "base"), change(make(tmp_path / "edited"), **{DOWN: scaled(1, 2, -1.0)})
    assert main(["diff", str(base), str(edited), "-o", str(tmp_path / "p.yaml")]) == 0
    patch = Patch.parse((tmp_path / "p.yaml").read_bytes())
    assert capsys.readouterr().out == f"found: {tmp_path}/p.yaml is {patch.id}, 1 neuron\n"


def test_no_model_is_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, edited = make(tmp_path / "base"), change(make(tmp_path / "edited"), **{DOWN: scaled(1, 2, -1.0)})
    for file in (base / "config.json", *edited.glob("*.safetensors")):
        before = file.read_bytes()
        assert main(["diff", str(base), str(edited), "-o", str(file)]) == 2
        said = f"vllm-surgery: error: {file}: is a file of the model; write to another file\n"
        assert capsys.readouterr().err == said
        assert file.read_bytes() == before
    assert main(["diff", str(base), str(edited), "-o", str(edited / "new.yaml")]) == 0


def test_the_command_says_what_no_patch_can(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, edited = make(tmp_path / "base"), change(make(tmp_path / "edited"), **{GATE: scaled(0, 2, -1.0)})
    assert main(["diff", str(base), str(edited)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        f"no patch can say: {GATE} 1 row(s) (2) changed by more than a gain ({HIDDEN} numbers)",
        "no unit differs",
    ]


def test_the_command_reports_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = make(tmp_path / "base")
    assert main(["diff", str(base), str(base), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "ok": True,
        "id": None,
        "patch": None,
        "unexplained": [],
        "notes": [],
        "gone": {},
    }


def test_a_name_that_no_patch_may_have_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, edited = make(tmp_path / "base"), change(make(tmp_path / "edited"), **{DOWN: scaled(1, 2, -1.0)})
    assert main(["diff", str(base), str(edited), "--name", "Not A Name"]) == 1
    assert "name: " in capsys.readouterr().err
