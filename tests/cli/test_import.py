# SPDX-License-Identifier: Apache-2.0
"""`vllm-surgery import` and `export`, and what other commands say of files that are to be imported."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.folders import config_of, expert_tensors, write_folder
from vllm_surgery import load_patch
from vllm_surgery.cli import main

if TYPE_CHECKING:
    from pathlib import Path

PROFILE = {"version": 1, "workload": "support chat", "pruned_experts": [[0, 3], [1, 2]]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = config_of((6, 6), 8, num_experts=4, num_experts_per_tok=2)
    return write_folder(tmp_path_factory.mktemp("models") / "moe", expert_tensors("own"), config)


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    file = tmp_path / "support.json"
    file.write_text(json.dumps(PROFILE))
    return file


@pytest.fixture
def in_place(profile: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder has the profile and the model in it."""
    monkeypatch.chdir(profile.parent)
    (profile.parent / "moe").symlink_to(model)


def test_a_profile_becomes_a_patch_file(
    profile: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "support.yaml"
    assert main(["import", str(profile), "--model", str(model), "-o", str(out)]) == 0
    patch = load_patch(out)
    assert capsys.readouterr() == (
        f"imported: {profile} is an expert profile of vLLM's pull request on pruning (RIY); {out} is {patch.id}, "
        "2 experts masked in 2 layers\n",
        "",
    )


def test_without_a_file_the_patch_alone_is_printed(
    profile: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lists.txt").write_text("0 3 -1\n1 2 1\n")
    arguments = ["import", str(tmp_path / "lists.txt"), "--model", str(model), "--leave-out-activated"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert "experts:\n    0: [3]\n" in out
    assert err == "note: 1 expert(s) that the file activates are left out\n"


def test_a_report_as_json(profile: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", str(profile), "--model", str(model), "--name", "mine", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["ok"], report["form"], report["notes"]) == (True, "profile", [])
    assert report["patch"]["edits"] == [{"op": "mask", "experts": {"0": [3], "1": [2]}}]


def test_every_option_reaches_its_form(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"layer": 0, "expert": 1, "risk_diff": 0.5}, {"layer": 1, "expert": 2, "risk_diff": -0.5}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    arguments = [
        "import",
        str(tmp_path / "rows.json"),
        "--model",
        str(model),
        "--deactivate",
        "1",
        "--reverse",
        "--json",
    ]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["patch"]["edits"] == [{"op": "mask", "experts": {"0": [1]}}]
    (tmp_path / "ranked.jsonl").write_text('{"0": [2, 1, 0, 3]}\n{"1": [2, 1, 0, 3]}\n')
    arguments = ["import", str(tmp_path / "ranked.jsonl"), "--model", str(model), "--prune-ratio", "0.25", "--json"]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["patch"]["edits"] == [{"op": "mask", "experts": {"0": [3], "1": [3]}}]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("import no.json --model moe", 2, "no.json: no such file"),
        ("import support.json --model no", 2, "no: no such model folder"),
        ("import support.json --model moe -o no/x", 1, "no/x: can't be written: No such file or directory"),
        ("import support.json --model moe -o support.json", 2, "support.json: is what this command reads; write to"),
        ("import support.json --model moe -o moe/config.json", 2, "moe/config.json: is a file of the model; write to"),
        ("import moe/config.json --model moe", 1, "moe/config.json: is in no form that can be imported; those are "),
    ],
)
@pytest.mark.usefixtures("in_place")
def test_a_refusal_is_one_line(arguments: str, code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments.split()) == code
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"vllm-surgery: error: {said}")


@pytest.mark.parametrize(
    ("content", "title"),
    [
        (PROFILE, "an expert profile of vLLM's pull request on pruning (RIY)"),
        ({"0": [3], "1": [2]}, "a drop map of experts"),
        ({"deactivate": {"0": [3]}}, "a list of SteerMoE"),
    ],
)
@pytest.mark.parametrize(
    "command", [["check"], ["show"], ["bake", "--model", "m", "--out", "o"], ["seal", "--model", "m"], ["swap"]]
)
def test_commands_that_take_patches_name_the_way_in(
    content: Any, title: str, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "list.json"
    file.write_text(json.dumps(content))
    assert main([command[0], str(file), *command[1:]]) == 1
    said = f"is {title}, no patch; make one of it with `vllm-surgery import list.json --model DIR`"
    assert capsys.readouterr().err == f"vllm-surgery: error: {file}: {said}\n"


def test_lines_of_a_ranking_are_named_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "math.jsonl"
    file.write_text('{"0":[3,1]}\n{"1":[2,0]}\n')
    assert main(["check", str(file)]) == 1
    assert "is a ranking of experts for vLLM-Ascend's pruning, no patch" in capsys.readouterr().err


def test_a_patch_with_a_fault_is_refused_for_its_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "fault.json"
    file.write_text(json.dumps({"version": 1, "name": "fault", "edits": []}))
    assert main(["check", str(file)]) == 1
    assert capsys.readouterr().err == f"vllm-surgery: error: {file}: edits: must not be empty\n"


def test_a_patch_is_written_in_another_form(
    profile: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    patch, out = tmp_path / "p.yaml", tmp_path / "ranked.jsonl"
    assert main(["import", str(profile), "--model", str(model), "-o", str(patch)]) == 0
    capsys.readouterr()
    assert main(["export", str(patch), "--as", "ranking", "--model", str(model), "-o", str(out)]) == 0
    assert capsys.readouterr() == (
        f"exported: {out} holds {load_patch(patch).id}\n",
        "note: it goes with an expert_prune_ratio of 0.125\n",
    )
    assert out.read_text() == '{"0": [0, 1, 2, 3]}\n{"1": [0, 1, 3, 2]}\n'


def test_without_a_file_the_list_alone_is_printed(
    profile: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    patch = tmp_path / "p.yaml"
    assert main(["import", str(profile), "--model", str(model), "-o", str(patch)]) == 0
    capsys.readouterr()
    assert main(["export", str(patch), "--as", "steermoe"]) == 0
    assert capsys.readouterr() == ("0 3 -1\n1 2 -1\n", "")
    assert main(["export", str(patch), "--as", "drop-map", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert json.loads(report["content"]) == {"0": [3], "1": [2]}
    assert main(["export", str(patch), "--as", "profile", "-o", str(tmp_path / "no" / "x")]) == 1
    assert "can't be written" in capsys.readouterr().err
