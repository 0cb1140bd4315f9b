# SPDX-License-Identifier: Apache-2.0
"""The entry point, as vLLM finds and calls it."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from vllm_surgery.engine.http.endpoint import SurgeryEndpoint
from vllm_surgery.engine.plugin import ENDPOINT_GROUP, GROUP, NAME, register
from vllm_surgery.engine.touchpoints import FOR_LOADING


def test_the_entry_point_is_register() -> None:
    assert [entry.load() for entry in entry_points(group=GROUP, name=NAME)] == [register]


def test_the_package_declares_the_same_name_in_every_group_of_vllms() -> None:
    """What is installed may be older than what is tested, so the declaration itself is read."""
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["entry-points"]
    loaded = {group: EntryPoint(NAME, entries[NAME], group).load() for group, entries in declared.items()}
    assert loaded == {GROUP: register, ENDPOINT_GROUP: SurgeryEndpoint}
    assert all(list(entries) == [NAME] for entries in declared.values())


def test_registering_twice_does_the_same_as_once() -> None:
    register()
    once = [point.get() for point in FOR_LOADING]
    register()
    assert [point.get() for point in FOR_LOADING] == once


def run(code: str, **more: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **more}, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_disabled_it_imports_nothing_of_vllm() -> None:
    code = "import sys; from vllm_surgery.engine.plugin import register; register(); print('vllm' in sys.modules)"
    assert run(code, VLLM_SURGERY_DISABLE="1") == "False"


def test_importing_the_entry_point_imports_nothing_of_vllm() -> None:
    assert run(
        "import sys; import vllm_surgery.engine.plugin; print('vllm' in sys.modules, 'torch' in sys.modules)"
    ) == ("False False")
