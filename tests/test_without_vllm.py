# SPDX-License-Identifier: Apache-2.0
"""Up to the plan nothing needs vLLM or torch; no offline tool needs vLLM. Shown where they can't be imported."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.folders import write_model
from tests.models import patch_of

if TYPE_CHECKING:
    from pathlib import Path

FORBID = """
import sys
class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in FORBIDDEN:
            raise ImportError(f"{name} is not to be imported here")
sys.meta_path.insert(0, Forbid())
from vllm_surgery.cli import main
"""


def run(forbidden: set[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    code = f"FORBIDDEN = {forbidden!r}\n{FORBID}\nsys.exit(main({list(arguments)!r}))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def files(tmp_path: Path) -> tuple[str, str]:
    patch = tmp_path / "patch.json"
    patch.write_text(json.dumps(patch_of({(0, 1): -1.0, (1, 2): 0.5})))
    return str(patch), str(write_model(tmp_path / "model"))


def test_the_forbidding_works() -> None:
    done = run({"vllm", "torch", "yaml"}, "schema")
    assert "yaml is not to be imported here" in done.stderr


def test_checking_showing_and_sealing_need_neither_vllm_nor_torch(tmp_path: Path) -> None:
    patch, model = files(tmp_path)
    for arguments in (
        ["check", patch, "--model", model],
        ["show", patch],
        ["schema"],
        ["seal", patch, "--model", model],
    ):
        done = run({"vllm", "torch"}, *arguments)
        assert (done.returncode, done.stderr) == (0, ""), arguments
    assert "plan for" in run({"vllm", "torch"}, "check", patch, "--model", model).stdout


def test_baking_diffing_and_exporting_dont_need_vllm(tmp_path: Path) -> None:
    patch, model = files(tmp_path)
    baked, adapter = str(tmp_path / "baked"), str(tmp_path / "adapter")
    assert run({"vllm"}, "bake", patch, "--model", model, "--out", baked).returncode == 0
    found = run({"vllm"}, "diff", model, baked)
    assert (found.returncode, "factor: 0.5" in found.stdout) == (0, True)
    assert run({"vllm"}, "export-lora", patch, "--model", model, "--out", adapter).returncode == 0
