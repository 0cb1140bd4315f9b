# SPDX-License-Identifier: Apache-2.0
"""`vllm-surgery push`, to a server on loopback that speaks the Hub's protocol."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.examples import patch_data
from tests.hub import Hub, serving
from vllm_surgery import load_patch
from vllm_surgery.cli import main
from vllm_surgery.imports.publishing import with_section
from vllm_surgery.patch.format import Patch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CARD = "---\nlicense: apache-2.0\n---\n# A model\n\nIts own words.\n"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    with serving(Hub(files={"README.md": CARD.encode()})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture
def patch(tmp_path: Path) -> Path:
    file = tmp_path / "any.json"
    file.write_text(json.dumps(patch_data(description="Fewer loops.", model={"base": "org/base"})))
    return file


def test_a_patch_and_its_section_are_one_commit(hub: Hub, patch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(patch), "--repo", "org/repo"]) == 0
    assert [commit["summary"] for commit in hub.commits] == ["vllm-surgery: small.yaml"]
    assert Patch.parse(hub.files["small.yaml"]) == load_patch(patch)
    card = hub.files["README.md"].decode()
    assert card.startswith(CARD)
    assert f"## Edited by vllm-surgery: `{load_patch(patch).id}`" in card
    assert "$ vllm-surgery serve org/base --patch hf://org/repo/small.yaml@main" in card
    assert (hub.created, set(hub.tokens)) == ([], {"Bearer hf_mine"})
    out = capsys.readouterr().out
    assert out == f"published: {hub.url}/org/repo/commit/{'f' * 40}\n  hf://org/repo/small.yaml@{'f' * 40}\n"


def test_what_was_published_is_served_by_the_address_that_is_printed(
    hub: Hub, patch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(patch), "--repo", "org/repo", "--json"]) == 0
    (address,) = json.loads(capsys.readouterr().out)["addresses"]
    assert main(["check", address]) == 0
    assert capsys.readouterr().out == f"ok: {address} is {load_patch(patch).id}\n"
    assert hub.asked[-1] == ("GET", f"/org/repo/resolve/{'f' * 40}/small.yaml")


def test_a_section_is_replaced_by_its_newer_one(hub: Hub, patch: Path) -> None:
    assert main(["push", str(patch), "--repo", "org/repo"]) == 0
    patch.write_text(json.dumps(patch_data(description="Fewer still.")))
    assert main(["push", str(patch), "--repo", "org/repo"]) == 0
    card = hub.files["README.md"].decode()
    assert (card.count("<!-- vllm-surgery small -->"), "Fewer loops." in card, "Fewer still." in card) == (
        1,
        False,
        True,
    )


def test_words_around_a_section_stay() -> None:
    patch = Patch.from_data(patch_data())
    once = with_section("before\n", patch, "org/repo")
    assert with_section(f"{once}after\n", patch, "org/repo") == f"{once}after\n"
    assert with_section("", patch, "org/repo").startswith("<!-- vllm-surgery small -->\n")


def test_a_repository_without_a_card_gets_one(hub: Hub, patch: Path) -> None:
    hub.files.clear()
    assert main(["push", str(patch), "--repo", "org/repo"]) == 0
    assert hub.files["README.md"].startswith(b"<!-- vllm-surgery small -->")


def test_a_repository_is_made_where_that_is_asked_for(hub: Hub, patch: Path) -> None:
    assert main(["push", str(patch), "--repo", "org/repo", "--create"]) == 0
    ((made),) = hub.created
    assert (made["name"], made.get("visibility") == "private" or made.get("private")) == ("repo", True)


def test_a_dry_run_uploads_nothing(hub: Hub, patch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(patch), "--repo", "org/repo", "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith(CARD)
    assert main(["push", str(patch), "--repo", "org/repo", "--dry-run", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["files"]) == {"README.md", "small.yaml"}
    assert [path for method, path in hub.asked if method == "POST"] == []


@pytest.mark.parametrize(
    "name", ["repo", "org/", "../x", "org/repo/more", "https://huggingface.co/org/repo", "-o/x", ""]
)
def test_what_is_no_repository_is_refused(name: str, hub: Hub, patch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(patch), f"--repo={name}"]) == 2
    assert capsys.readouterr().err.endswith(f"--repo {name}: expected ORG/NAME, as the Hub calls a repository\n")
    assert hub.asked == []


def test_two_patches_of_one_name_are_refused(
    hub: Hub, patch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps(patch_data({"op": "zero", "neurons": {"5": [5]}})))
    assert main(["push", str(patch), str(other), "--repo", "org/repo"]) == 2
    assert "two of the patches have one name" in capsys.readouterr().err
    assert hub.asked == []


def test_a_refusal_of_the_hub_is_one_line(hub: Hub, patch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.answer = lambda path: (403, {}, b'{"error": "no\\nright"}') if "/commit/" in path else None
    assert main(["push", str(patch), "--repo", "org/repo"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("vllm-surgery: error: org/repo: nothing was published: ")
    assert err.count("\n") == 1
    assert "hf_mine" not in err
