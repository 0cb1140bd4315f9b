# SPDX-License-Identifier: Apache-2.0
"""Reading what others put there: never waits, never without a bound."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.examples import refusal
from vllm_surgery.errors import CheckpointError, PatchError, UsageError
from vllm_surgery.model.checkpoint import ModelFolder, read_header_bytes
from vllm_surgery.patch.files import load_patch
from vllm_surgery.patch.folders import PatchLibrary
from vllm_surgery.patch.watched_files import WatchedFiles
from vllm_surgery.regular_files import read_regular

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    made = tmp_path / "folder" / "p.yaml"
    made.parent.mkdir()
    os.mkfifo(made)
    return made


@pytest.mark.parametrize(
    ("read", "kind", "said"),
    [
        (load_patch, UsageError, "{}: is not a regular file"),
        (read_header_bytes, CheckpointError, "{}: is no safetensors file: [Errno 22] is not a regular file: "),
        (lambda pipe: PatchLibrary([pipe.parent]).load("p"), PatchError, "p.yaml: is not a regular file"),
    ],
)
def test_a_pipe_in_a_files_place_makes_nobody_wait(
    pipe: Path, read: Callable[[Path], object], kind: type[UsageError], said: str
) -> None:
    assert refusal(lambda: read(pipe), kind).startswith(said.format(pipe))


def test_a_pipe_makes_no_watcher_wait(pipe: Path) -> None:
    assert WatchedFiles([pipe]).read().error == "p.yaml: is not a regular file"


def test_a_pipe_is_no_model(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    assert "is not a regular file" in refusal(lambda: ModelFolder(tmp_path), CheckpointError)


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null"])
def test_a_device_is_no_file(device: str) -> None:
    assert refusal(lambda: load_patch(device), UsageError) == f"{device}: is not a regular file"


def test_no_more_is_read_than_one_byte_beyond_the_bound(tmp_path: Path) -> None:
    file = tmp_path / "long"
    with file.open("wb") as opened:
        opened.truncate(1 << 40)
    assert read_regular(file, 10) == bytes(11)


def test_a_link_is_followed_where_it_may_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link", 10) == b"x"
    with pytest.raises(OSError, match="symbolic links"):
        read_regular(tmp_path / "link", 10, follow=False)


def test_nothing_stays_open(pipe: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        refusal(lambda: load_patch(pipe), UsageError)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
