# SPDX-License-Identifier: Apache-2.0
"""What can be known of `make containers` without a container. The run itself is apart from the other tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from deploy import containers


def test_what_is_missing_is_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["containers", "--model", str(tmp_path), "--keep"])
    assert containers.main() == 1
    error = "[containers] error: install these packages first: buildah conmon mmdebstrap podman runc\n"
    assert capsys.readouterr().err == error


def test_the_deployments_arguments_are_those_that_are_changed_for_one_machine() -> None:
    arguments = containers.arguments()
    assert f"--port={containers.PORT}" in arguments
    assert "--host=127.0.0.1" in arguments
    assert not {"--port=8000", "--host=0.0.0.0"} & set(arguments)
    assert arguments[:2] == ["serve", "/models/smollm2"]


@pytest.mark.parametrize("name", [containers.FIRST, containers.SECOND])
def test_a_followed_file_is_replaced_in_one_step(name: str, tmp_path: Path) -> None:
    containers.replace(tmp_path, name)
    assert [file.name for file in tmp_path.iterdir()] == ["active.yaml"]
    assert (tmp_path / "active.yaml").read_bytes() == (Path("patches") / f"{name}.yaml").read_bytes()
