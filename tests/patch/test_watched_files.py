# SPDX-License-Identifier: Apache-2.0
"""Followed files: what they ask for, whatever happens to them."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.examples import patch_data, zero
from vllm_surgery.patch.files import load_patch
from vllm_surgery.patch.format import Patch
from vllm_surgery.patch.patch_set import PatchSet, SourcedPatch
from vllm_surgery.patch.watched_files import WatchedFiles

if TYPE_CHECKING:
    from pathlib import Path

A, B = patch_data(zero({"1": [1]}), name="a"), patch_data(zero({"2": [2]}), name="b")


def ids(*patches: dict[str, Any]) -> str:
    return "+".join(sorted(Patch.from_data(patch).id for patch in patches))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "wanted.yaml"
    made.write_text(json.dumps(A))
    return made


def test_the_files_are_one_set(file: Path, tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text(json.dumps(B))
    snapshot = WatchedFiles([file, tmp_path / "b.json"]).read()
    assert (snapshot.id, snapshot.error) == (ids(A, B), "")
    read = [load_patch(path) for path in (file, tmp_path / "b.json")]
    assert snapshot.patches == PatchSet(tuple(map(SourcedPatch, ("wanted.yaml", "b.json"), read)))


def test_an_edit_is_seen_though_size_and_times_stay(file: Path) -> None:
    files = WatchedFiles([file])
    before, times = files.read(), file.stat()
    file.write_text(json.dumps(patch_data(zero({"1": [2]}), name="a")))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = files.read()
    assert file.stat().st_size == times.st_size
    assert before.fingerprint != after.fingerprint
    assert before.id != after.id


def test_a_replaced_file_is_seen(file: Path, tmp_path: Path) -> None:
    files = WatchedFiles([file])
    files.read()
    (tmp_path / "new").write_text(json.dumps(B))
    (tmp_path / "new").rename(file)
    assert files.read().id == ids(B)


def test_a_config_map_whose_link_is_flipped_is_seen(tmp_path: Path) -> None:
    for version, patch in (("..1", A), ("..2", B)):
        (tmp_path / version).mkdir()
        (tmp_path / version / "p.yaml").write_text(json.dumps(patch))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "p.yaml").symlink_to("..data/p.yaml")
    files = WatchedFiles([tmp_path / "p.yaml"])
    assert files.read().id == ids(A)
    (tmp_path / "..tmp").symlink_to("..2")
    (tmp_path / "..tmp").rename(tmp_path / "..data")
    assert files.read().id == ids(B)


def test_a_missing_file_asks_for_nothing_at_all(file: Path) -> None:
    file.unlink()
    snapshot = WatchedFiles([file]).read()
    assert (snapshot.patches, snapshot.id, snapshot.error) == (None, None, "wanted.yaml: no such file")


def test_a_wrong_file_says_why(file: Path) -> None:
    file.write_text("version: 1\n")
    snapshot = WatchedFiles([file]).read()
    assert (snapshot.patches, snapshot.error) == (None, "wanted.yaml: name: is missing")


def test_files_that_clash_say_so(file: Path, tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(json.dumps(A | {"name": "b"}))
    assert "already named in" in WatchedFiles([file, tmp_path / "b.yaml"]).read().error


def test_a_file_that_came_back_is_the_same_again(file: Path) -> None:
    files = WatchedFiles([file])
    before, content = files.read(), file.read_text()
    file.unlink()
    assert files.read().fingerprint != before.fingerprint
    file.write_text(content)
    assert files.read() == before


def test_what_is_unchanged_is_not_parsed_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = WatchedFiles([file])
    files.read()
    monkeypatch.setattr("vllm_surgery.patch.watched_files.Patch.parse", lambda *_: pytest.fail("parsed again"))
    assert files.read().id == ids(A)
