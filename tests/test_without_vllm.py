# SPDX-License-Identifier: Apache-2.0
"""Up to the plan neither vLLM nor torch is imported: a laptop without either can check a patch."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.examples import patch_data, zero
from tests.folders import write_model
from vllm_surgery.model.checkpoint import ModelFolder
from vllm_surgery.patch.format import Patch
from vllm_surgery.patch.units import Unit
from vllm_surgery.planning.seal import seal_of_folder

if TYPE_CHECKING:
    from pathlib import Path

WITHOUT = """
import importlib.abc, sys

FORBIDDEN = {forbidden}

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in FORBIDDEN:
            raise ImportError(f"{name} must not be imported here")

sys.meta_path.insert(0, Missing())
"""

REVIEW = """
import dataclasses, json
from vllm_surgery import ModelFolder, PatchSet
from vllm_surgery.planning.check import check_patches
from vllm_surgery.patch.units import Unit
from vllm_surgery.planning.seal import seal_of_folder

patch, folder = sys.argv[1], ModelFolder(sys.argv[2])
plan = check_patches(PatchSet.load([patch]), folder)
print(json.dumps({"plan": dataclasses.asdict(plan), "seal": seal_of_folder(folder, Unit("neurons", 1, 5))}))
"""


MAIN = "from vllm_surgery.cli import main; sys.exit(main(sys.argv[1:]))"


def run(
    code: str, *arguments: str | Path, forbidden: tuple[str, ...] = ("vllm", "torch", "transformers")
) -> subprocess.CompletedProcess[str]:
    program = WITHOUT.replace("{forbidden}", repr(forbidden)) + code
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", (6, 8), dtype="BF16")


@pytest.fixture
def patch_file(tmp_path: Path, model: Path) -> Path:
    seal = {"neurons/1/5": seal_of_folder(ModelFolder(model), Unit("neurons", 1, 5))}
    file = tmp_path / "p.yaml"
    file.write_text(
        Patch.from_data(patch_data(zero({"1": [5]}), model={"intermediate_size": [6, 8]}, seal=seal)).to_yaml()
    )
    return file


@pytest.mark.parametrize("name", ["vllm", "torch"])
def test_these_processes_have_neither(name: str) -> None:
    done = run(f"import {name}")

    assert f"ImportError: {name} must not be imported here" in done.stderr


def test_the_package_is_imported() -> None:
    done = run("import vllm_surgery; print(vllm_surgery.__version__)")

    assert (done.returncode, done.stderr) == (0, "")


def test_a_patch_is_loaded_reviewed_and_sealed(model: Path, patch_file: Path) -> None:
    done = run(REVIEW, patch_file, model)

    assert done.stderr == ""
    assert json.loads(done.stdout)["plan"]["edits"][0] == {
        "tensor": "model.layers.1.mlp.down_proj.weight",
        "dtype": "BF16",
        "shape": [4, 8],
        "axis": 1,
        "indices": [5],
        "gains": [0.0],
        "numbers": "floats",
        "inside": [],
    }


@pytest.mark.parametrize("arguments", [["check"], ["show"], ["schema"], ["seal"]], ids=lambda arguments: arguments[0])
def test_the_command_line_works(arguments: list[str], patch_file: Path, model: Path) -> None:
    files: dict[str, list[str | Path]] = {"check": [patch_file, "--model", model], "show": [patch_file], "schema": []}
    files["seal"] = files["check"]

    done = run(MAIN, *arguments, *files[arguments[0]])

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", ["status", "watch"])
def test_a_server_can_be_talked_to(command: str) -> None:
    done = run(MAIN, command, "--url", "http://127.0.0.1:1")

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("vllm-surgery: error: http://127.0.0.1:1: ")


def test_a_trial_needs_neither() -> None:
    done = run(MAIN, "evaluate", "--url", "http://127.0.0.1:1")

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("vllm-surgery: error: http://127.0.0.1:1: ")


def test_files_are_followed_and_folders_read(patch_file: Path) -> None:
    code = (
        "from vllm_surgery.patch.watched_files import WatchedFiles; from vllm_surgery.engine.file_watcher import FileWatcher\n"
        "from vllm_surgery.patch.folders import PatchLibrary\n"
        "print(WatchedFiles([sys.argv[1]]).read().id == PatchLibrary([sys.argv[2]]).listing()[0].id)"
    )
    done = run(code, patch_file, patch_file.parent)

    assert (done.stdout, done.stderr) == ("True\n", "")


def test_what_changes_weights_needs_torch_and_no_vllm(patch_file: Path, model: Path, tmp_path: Path) -> None:
    baked, adapter = tmp_path / "baked", tmp_path / "adapter"
    for arguments in (
        ["bake", patch_file, "--model", model, "--out", baked],
        ["diff", model, baked],
        ["export-lora", patch_file, "--model", model, "--out", adapter],
    ):
        done = run(MAIN, *arguments, forbidden=("vllm", "transformers"))

        assert done.returncode == 0, done.stderr
