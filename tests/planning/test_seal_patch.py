# SPDX-License-Identifier: Apache-2.0
"""`vllm-surgery seal`: a patch that fits one model and refuses every other."""

from __future__ import annotations

import json
import stat
from typing import TYPE_CHECKING

import pytest

from tests.folders import write_model
from tests.models import patch_of
from vllm_surgery import MismatchError, ModelFolder, PatchSet, load_patch
from vllm_surgery.cli import main
from vllm_surgery.planning import check as module
from vllm_surgery.planning.check import check_patches

if TYPE_CHECKING:
    from pathlib import Path

GAINS = {(0, 1): -1.0, (1, 4): 0.5}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", (6, 8), hidden=16)


@pytest.fixture
def patch(tmp_path: Path) -> Path:
    file = tmp_path / "patch.yaml"
    file.write_text(json.dumps(patch_of(GAINS, description="words", provenance={"source": "a test"})))
    return file


def test_guard_and_seals_are_written(model: Path, patch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["seal", str(patch), "--model", str(model)]) == 0
    sealed = load_patch(patch)
    assert capsys.readouterr().out == f"sealed: {patch} is {sealed.id}, 2 units\n"
    assert sealed.model.given() == {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": 2,
        "hidden_size": 16,
        "intermediate_size": [6, 8],
    }
    assert list(sealed.seal) == ["neurons/0/1", "neurons/1/4"]
    assert (sealed.description, sealed.provenance) == ("words", {"source": "a test"})


def test_a_sealed_patch_fits_its_model_in_any_layout(model: Path, patch: Path, tmp_path: Path) -> None:
    main(["seal", str(patch), "--model", str(model)])
    sharded = write_model(tmp_path / "sharded", (6, 8), hidden=16, shards=3)
    for folder in (model, sharded):
        assert check_patches(PatchSet.load([patch]), ModelFolder(folder)).units == 2


def test_a_sealed_patch_refuses_other_weights(model: Path, patch: Path, tmp_path: Path) -> None:
    main(["seal", str(patch), "--model", str(model)])
    other = write_model(tmp_path / "other", (6, 8), hidden=16, seed=1)
    with pytest.raises(MismatchError, match=r"seal\.neurons/0/1: broken"):
        check_patches(PatchSet.load([patch]), ModelFolder(other))


def test_sealing_again_for_another_model_renews_the_seals(model: Path, patch: Path, tmp_path: Path) -> None:
    main(["seal", str(patch), "--model", str(model)])
    before = load_patch(patch).seal
    other = write_model(tmp_path / "other", (6, 8), hidden=16, seed=1)
    assert main(["seal", str(patch), "--model", str(other)]) == 0
    assert load_patch(patch).seal != before


def test_a_whole_layer_is_sealed_unit_by_unit(model: Path, patch: Path) -> None:
    patch.write_text("{version: 1, name: x, edits: [{op: zero, neurons: {1: all}}]}")
    main(["seal", str(patch), "--model", str(model)])
    assert list(load_patch(patch).seal) == [f"neurons/1/{index}" for index in range(8)]


def test_a_guard_that_is_wrong_writes_nothing(model: Path, patch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    patch.write_text(json.dumps(patch_of(GAINS, model={"hidden_size": 9})))
    before = patch.read_bytes()
    assert main(["seal", str(patch), "--model", str(model)]) == 1
    assert capsys.readouterr().err == (
        f"vllm-surgery: error: {patch}: model.hidden_size: the patch is for 9, this model has 16\n"
    )
    assert patch.read_bytes() == before


def test_another_file_may_be_written(model: Path, patch: Path, tmp_path: Path) -> None:
    before = patch.read_bytes()
    out = tmp_path / "out.json"
    assert main(["seal", str(patch), "--model", str(model), "-o", str(out)]) == 0
    assert patch.read_bytes() == before
    assert json.loads(out.read_bytes())["seal"].keys() == load_patch(out).seal.keys()


def test_the_files_mode_stays(model: Path, patch: Path) -> None:
    patch.chmod(0o640)
    main(["seal", str(patch), "--model", str(model)])
    assert stat.S_IMODE(patch.stat().st_mode) == 0o640


def test_a_folder_that_isnt_there_is_one_line(model: Path, patch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["seal", str(patch), "--model", str(model), "-o", "/nowhere/out.yaml"]) == 1
    assert capsys.readouterr().err == (
        "vllm-surgery: error: /nowhere/out.yaml: can't be written: No such file or directory\n"
    )


def test_more_seals_than_a_file_may_hold_are_refused(
    model: Path, patch: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 300)
    assert main(["seal", str(patch), "--model", str(model)]) == 1
    assert "seal: 2 units make the file larger than 1 MiB; it can't be sealed" in capsys.readouterr().err


def test_json_is_reported(model: Path, patch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["seal", str(patch), "--model", str(model), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == {"ok": True, "file": str(patch), "id": load_patch(patch).id, "units": 2}
