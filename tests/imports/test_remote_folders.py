# SPDX-License-Identifier: Apache-2.0
"""Patch folders in a repository of the Hub, from a server on loopback that speaks its protocol."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.examples import patch_data, refusal
from tests.hub import COMMIT, Hub, serving
from vllm_surgery.errors import UsageError
from vllm_surgery.imports.fetching import UnreachableError
from vllm_surgery.imports.remote_folders import MOST_FILES, patch_folder
from vllm_surgery.patch.folders import PatchLibrary

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ADDRESS = "hf://org/repo@main"


def content(name: str) -> bytes:
    return json.dumps(patch_data(name=name)).encode()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    files = {"a.yaml": content("a"), "b.json": content("b"), "README.md": b"#", "schema.json": b"{}", ".x.yaml": b""}
    with serving(Hub(files=files)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def test_a_folder_here_is_that_folder(tmp_path: Path) -> None:
    assert patch_folder(tmp_path) == tmp_path
    assert refusal(lambda: patch_folder(tmp_path / "no"), UsageError) == f"{tmp_path / 'no'}: no such folder"


def test_the_patch_files_of_a_repository_are_a_folder(hub: Hub) -> None:
    folder = patch_folder(ADDRESS)
    assert PatchLibrary([folder]).names() == ["a", "b"]
    assert PatchLibrary([folder]).load("b").patch.name == "b"
    assert [path for _, path in hub.asked if "/resolve/" in path] == [
        f"/org/repo/resolve/{COMMIT}/{name}" for name in ("a.yaml", "b.json")
    ]


def test_a_folder_in_a_repository_is_one_too(hub: Hub) -> None:
    hub.files = {"cures/c.yaml": content("c")}
    assert PatchLibrary([patch_folder("hf://org/repo/cures@main")]).names() == ["c"]
    assert ("GET", f"/org/repo/resolve/{COMMIT}/cures/c.yaml") in hub.asked


def test_the_folder_follows_its_branch_at_the_next_start(hub: Hub) -> None:
    patch_folder(ADDRESS)
    hub.files, hub.commit = {"c.yaml": content("c")}, "e" * 40
    assert PatchLibrary([patch_folder(ADDRESS)]).names() == ["c"]


def test_what_was_fetched_serves_while_the_hub_is_away(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    said = f"{ADDRESS}: isn't in the cache, and HF_HUB_OFFLINE is set"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert refusal(lambda: patch_folder(ADDRESS), UsageError) == said
    monkeypatch.delenv("HF_HUB_OFFLINE")
    folder = patch_folder(ADDRESS)
    hub.answer = lambda _path: (503, {}, b"")
    assert patch_folder(ADDRESS) == folder
    assert "going on with what stood there when it was last fetched" in caplog.text
    assert refusal(lambda: patch_folder("hf://org/repo@v2"), UnreachableError).endswith("503 Service Unavailable")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert PatchLibrary([patch_folder(ADDRESS)]).names() == ["a", "b"]


@pytest.mark.parametrize(
    "address",
    [
        "hf://org/repo",
        "hf://org@main",
        "hf://org/repo/../x@main",
        "hf://org/repo@../x",
        "https://127.0.0.1/x",
        "hf://a/b//c@d",
    ],
)
def test_an_address_that_is_none_of_a_folder_is_refused(address: str, hub: Hub) -> None:
    said = f"{address}: expected hf://ORG/REPO@REVISION or hf://ORG/REPO/FOLDER@REVISION"
    assert refusal(lambda: patch_folder(address), UsageError) == said
    assert hub.asked == []


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({"/revision/": (200, {}, b"no json")}, "answers with no JSON"),
        ({"/revision/": (200, {}, b"[" * 50_000)}, "answers with no JSON"),
        ({"/revision/": (200, {}, b'{"sha": "../../x"}')}, "hf://org/repo@main: the Hub names no commit"),
        ({"/revision/": (200, {}, b"[]")}, "hf://org/repo@main: the Hub names no commit"),
        ({"/revision/": (404, {}, b"")}, "the server says 404 Not Found"),
        ({"/tree/": (200, {}, b"{}")}, f"{ADDRESS}: has no patch files"),
        (
            {"/tree/": (200, {}, b'[1, {"type": "file", "path": 2}, {"path": "a.yaml"}]')},
            f"{ADDRESS}: has no patch files",
        ),
        ({"/tree/": (200, {}, b'[{"type": "file", "path": "a@b.yaml"}]')}, "expected hf://ORG/REPO/FILE.yaml@REVISION"),
    ],
)
def test_what_a_hub_gives_is_refused(answers: dict[str, Any], reason: str, hub: Hub) -> None:
    hub.answer = lambda path: next((answer for part, answer in answers.items() if part in path), None)
    assert reason in refusal(lambda: patch_folder(ADDRESS))


def test_a_listing_leads_to_no_other_folder(hub: Hub, tmp_path: Path) -> None:
    listing = [{"type": "file", "path": "../../../outside.yaml"}]
    hub.answer = lambda path: (200, {}, json.dumps(listing).encode()) if "/tree/" in path else None
    hub.files["outside.yaml"] = content("outside")
    folder = patch_folder(ADDRESS)
    assert [path.name for path in folder.iterdir()] == ["outside.yaml"]
    assert [path for path in tmp_path.rglob("outside.yaml") if path.parent != folder] == []


def test_too_many_files_are_refused(hub: Hub) -> None:
    hub.files = {f"p{number}.yaml": b"" for number in range(MOST_FILES + 1)}
    said = f"{ADDRESS}: has 65 files that may be patches; at most 64 are fetched"
    assert refusal(lambda: patch_folder(ADDRESS), UsageError) == said
