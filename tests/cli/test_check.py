# SPDX-License-Identifier: Apache-2.0
"""`vllm-surgery check`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.models import WIDTH, down, patch_of
from vllm_surgery import load_patch
from vllm_surgery.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest


def write(file: Path, gains: dict[tuple[int, int], float]) -> Path:
    file.write_text(json.dumps(patch_of(gains, file.stem)))
    return file


def test_a_sound_patch_is_named_by_its_id(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "a.json", {(0, 0): -1.0})
    assert main(["check", str(file)]) == 0
    assert capsys.readouterr().out == f"ok: {file} is {load_patch(file).id}\n"


def test_with_a_model_the_plan_is_printed(
    tmp_path: Path, family_model: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "a.json", {(0, 0): -1.0, (0, 5): 0.0, (3, 7): 2.5})
    assert main(["check", str(file), "--model", str(family_model("Llama"))]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"plan for {family_model('Llama')}: 3 units in 2 tensors",
        f"  {down(0)} F32 [128, 128], columns: 0 negated, 5 silenced",
        f"  {down(3)} F32 [128, 128], columns: 7 x 2.5",
    ]


def test_a_long_plan_is_cut(
    tmp_path: Path, family_model: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "a.json", {(0, index): 0.0 for index in range(20)})
    assert main(["check", str(file), "--model", str(family_model("Llama"))]) == 0
    assert capsys.readouterr().out.endswith("7 silenced and 12 more\n")


def test_the_plan_as_json_is_whole(
    tmp_path: Path, family_model: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "a.json", {(0, index): 0.0 for index in range(20)})
    assert main(["check", str(file), "--model", str(family_model("Llama")), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["ok"], report["id"], report["plan"]["units"]) == (True, load_patch(file).id, 20)
    assert report["plan"]["edits"][0]["indices"] == list(range(20))


def test_a_patch_for_another_model_is_exit_code_1(
    tmp_path: Path, family_model: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "a.json", {(0, WIDTH): 0.0})
    assert main(["check", str(file), "--model", str(family_model("Llama"))]) == 1
    assert f"edits[0].neurons.0: index {WIDTH} is out of range" in capsys.readouterr().err


def test_a_missing_model_is_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "a.json", {(0, 0): 0.0})
    assert main(["check", str(file), "--model", "/nowhere"]) == 2
    assert capsys.readouterr().err == "vllm-surgery: error: /nowhere: no such model folder\n"


def test_several_files_are_one_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [write(tmp_path / f"{name}.json", {(0, 0): -1.0}) for name in ("a", "b")]
    assert main(["check", *map(str, files)]) == 1
    assert "neurons 0 of layer 0: already named in" in capsys.readouterr().err


def test_the_shipped_patch_fits_the_demo_model(demo_model: Path, shipped_patch: Path) -> None:
    assert main(["check", str(shipped_patch), "--model", str(demo_model)]) == 0
