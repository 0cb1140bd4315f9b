# SPDX-License-Identifier: Apache-2.0
"""Patches by name: what is found, and that nothing outside the folders ever is."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.examples import patch_data, refusal, zero
from vllm_surgery.errors import PatchError, UsageError
from vllm_surgery.patch.document import MAX_BYTES
from vllm_surgery.patch.folders import PatchLibrary, check_folder
from vllm_surgery.patch.format import Patch

GOOD = json.dumps(patch_data())
GOOD_ID = Patch.from_data(patch_data()).id
SECRET = json.dumps(patch_data(zero({"9": [9]}), name="secret"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one good patch; a secret one lies beside it."""
    made = tmp_path / "patches"
    made.mkdir()
    (made / "good.yaml").write_text(GOOD)
    (tmp_path / "secret.yaml").write_text(SECRET)
    return made


def test_a_patch_is_found_by_its_files_name_whatever_it_calls_itself(folder: Path) -> None:
    found = PatchLibrary([folder]).load("good")
    assert (found.source, found.patch.name) == ("good.yaml", "small")


@pytest.mark.parametrize("ending", [".yaml", ".yml", ".json"])
def test_every_ending_is_known(folder: Path, ending: str) -> None:
    (folder / f"more{ending}").write_text(GOOD)
    assert PatchLibrary([folder]).names() == ["good", "more"]


def test_a_patch_is_found_by_the_id_that_a_listing_shows(folder: Path) -> None:
    library = PatchLibrary([folder])
    assert library.load(GOOD_ID).patch.id == GOOD_ID


def test_a_broken_file_hides_no_id(folder: Path) -> None:
    (folder / "bad.yaml").write_text("no patch")
    (folder / "also-good.yaml").write_text(GOOD)
    assert PatchLibrary([folder]).load(GOOD_ID).patch.id == GOOD_ID


def test_an_id_with_other_edits_says_so(folder: Path) -> None:
    library = PatchLibrary([folder])
    said = "no patch is called 'good@00000000': the one of that name in the server's patch folders holds other edits"
    assert refusal(lambda: library.load("good@00000000"), UsageError) == said
    said = "no patch is called 'bad@00000000' in the server's patch folders"
    assert refusal(lambda: library.load("bad@00000000"), UsageError) == said


@pytest.mark.parametrize("name", ["hf://org/repo/good.yaml@main", "https://localhost/good.yaml#sha256=" + "0" * 64])
def test_no_name_is_an_address(folder: Path, name: str) -> None:
    said = refusal(lambda: PatchLibrary([folder]).load(name), UsageError)
    assert said.startswith("no patch is called")


def test_several_folders_are_one_library(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.json").write_text(GOOD)
    assert PatchLibrary([folder, other]).names() == ["a", "good"]


def test_a_broken_file_is_listed_with_its_error(folder: Path) -> None:
    (folder / "bad.yml").write_text("version: 1\nname: bad\n")
    bad, good = PatchLibrary([folder]).listing()
    assert (bad.name, bad.id, bad.error) == ("bad", None, "bad.yml: edits: is missing")
    assert (good.name, good.id, good.error) == ("good", GOOD_ID, None)


def test_files_of_other_kinds_and_hidden_ones_are_left_out(folder: Path) -> None:
    for name in ("notes.txt", ".good.yaml.swp", ".hidden.yaml", "good.yaml~", "yaml", ".yaml"):
        (folder / name).write_text(GOOD)
    assert PatchLibrary([folder]).names() == ["good"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a system whose file names are any bytes")
def test_a_file_name_that_is_no_text_is_left_out(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.yaml")).write_text(GOOD)
    (folder / "two\nlines.yaml").write_text(GOOD)
    assert PatchLibrary([folder]).names() == ["good"]


def test_one_name_in_two_files_is_refused_and_listed_once(folder: Path) -> None:
    (folder / "good.json").write_text(GOOD)
    library = PatchLibrary([folder])
    said = "'good' is ambiguous: good.json and good.yaml go by that name"
    assert refusal(lambda: library.load("good"), UsageError) == said
    assert [(item.name, item.error) for item in library.listing()] == [("good", said)]


def test_no_file_can_take_the_name_that_stands_for_no_patch(folder: Path) -> None:
    (folder / "none.yaml").write_text(GOOD)
    library = PatchLibrary([folder])
    said = "none.yaml: 'none' stands for no patch at all; call the file something else"
    assert refusal(lambda: library.load("none"), UsageError) == said
    assert [item.error for item in library.listing() if item.name == "none"] == [said]


def test_a_config_map_is_read_through_its_links(folder: Path) -> None:
    """As Kubernetes mounts one: name -> ..data/name -> ..2024_x/name."""
    real = folder / "..2024_x"
    real.mkdir()
    (real / "mapped.yaml").write_text(GOOD)
    (folder / "..data").symlink_to("..2024_x")
    (folder / "mapped.yaml").symlink_to("..data/mapped.yaml")
    library = PatchLibrary([folder])
    assert library.names() == ["good", "mapped"]
    assert library.load("mapped").patch.id == GOOD_ID


def test_the_folder_itself_may_be_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    assert PatchLibrary([tmp_path / "link"]).load("good").patch.id == GOOD_ID


@pytest.mark.parametrize("target", ["../secret.yaml", "{outside}/secret.yaml", "up/secret.yaml"])
def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path, target: str) -> None:
    (folder / "up").symlink_to("..")
    (folder / "link.yaml").symlink_to(target.format(outside=tmp_path))
    library = PatchLibrary([folder])
    said = "link.yaml: is a link that leads out of its folder"
    assert refusal(lambda: library.load("link"), PatchError) == said
    assert [item.error for item in library.listing() if item.name == "link"] == [said]


def test_a_link_to_a_neighbour_with_a_longer_name_is_refused(folder: Path, tmp_path: Path) -> None:
    neighbour = tmp_path / "patches-secret"
    neighbour.mkdir()
    (neighbour / "a.yaml").write_text(SECRET)
    (folder / "a.yaml").symlink_to(neighbour / "a.yaml")
    refusal(lambda: PatchLibrary([folder]).load("a"), PatchError)


def test_links_to_nothing_and_in_circles_are_refused(folder: Path) -> None:
    (folder / "gone.yaml").symlink_to("nothing.yaml")
    (folder / "circle.yaml").symlink_to("circle.yaml")
    library = PatchLibrary([folder])
    assert refusal(lambda: library.load("gone"), PatchError) == "gone.yaml: No such file or directory"
    assert refusal(lambda: library.load("circle"), PatchError).startswith("circle.yaml: ")
    assert [item.name for item in library.listing() if item.error] == ["circle", "gone"]


def test_only_regular_files_are_read(folder: Path) -> None:
    os.mkfifo(folder / "pipe.yaml")
    (folder / "folder.yaml").mkdir()
    library = PatchLibrary([folder])
    for name, kind in (("pipe", "not a regular file"), ("folder", "a folder")):
        assert refusal(lambda name=name: library.load(name), PatchError) == f"{name}.yaml: is {kind}"
    assert [item.id for item in library.listing()] == [None, GOOD_ID, None]


def test_a_file_that_may_not_be_read_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("vllm_surgery.patch.folders.os.open", denied)
    assert refusal(lambda: PatchLibrary([folder]).load("good"), PatchError) == "good.yaml: Permission denied"


def test_a_huge_file_is_refused(folder: Path) -> None:
    with (folder / "huge.yaml").open("wb") as file:
        file.truncate(10 * MAX_BYTES)
    assert "is too long" in refusal(lambda: PatchLibrary([folder]).load("huge"), PatchError)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../secret",
        "../secret.yaml",
        "good/../../secret",
        "./good",
        "good\0",
        "\0",
        "GOOD",
        "good ",
        "\uff0e\uff0e\uff0fsecret",
        "\u2025/secret",
        "..\u2215secret",
        "..%2fsecret",
        "%2e%2e/secret",
        "..\\secret",
        "\uff47\uff4f\uff4f\uff44",
        "go\u00adod",
        "good\n",
        "a" * 100_000,
        "~/secret",
        "file:///secret",
        "*",
        "\ud800",
    ],
    ids=lambda name: repr(name[:20]),
)
def test_tricks_find_nothing(folder: Path, name: str) -> None:
    said = refusal(lambda: PatchLibrary([folder]).load(name), UsageError)
    assert said.startswith("no patch is called ")
    assert len(said) < 200


def test_an_absolute_path_finds_nothing(folder: Path, tmp_path: Path) -> None:
    for name in (tmp_path / "secret", tmp_path / "secret.yaml", folder / "good", folder / "good.yaml"):
        refusal(lambda name=name: PatchLibrary([folder]).load(str(name)), UsageError)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.text(max_size=30)
    | st.lists(st.sampled_from(["..", ".", "/", "secret", "good", ".yaml", "\0", "up", "\uff0e", "\uff0f", "\\"])).map(
        "".join
    )
)
def test_no_name_ever_opens_a_file_outside(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    library, opened = _watched_library(tmp_path_factory)
    with opened as paths:
        try:
            assert library.load(name).patch.id == GOOD_ID
            assert name == "good"
        except UsageError:
            assert name != "good"
        assert {path.name for path in paths} <= {"good.yaml"}


class _Opened:
    """Every path that is opened while the block runs."""

    def __enter__(self) -> list[Path]:
        self.paths: list[Path] = []
        self._patch = pytest.MonkeyPatch()
        original = os.open

        def spy(path: os.PathLike[str], *rest: int) -> int:
            self.paths.append(Path(path))
            return original(path, *rest)

        self._patch.setattr("vllm_surgery.patch.folders.os.open", spy)
        return self.paths

    def __exit__(self, *_: object) -> None:
        self._patch.undo()


_made: list[Path] = []


def _watched_library(factory: pytest.TempPathFactory) -> tuple[PatchLibrary, _Opened]:
    if not _made:
        _made.append(factory.mktemp("library"))
        (_made[0] / "patches").mkdir()
        (_made[0] / "patches" / "good.yaml").write_text(GOOD)
        (_made[0] / "secret.yaml").write_text(SECRET)
    return PatchLibrary([_made[0] / "patches"]), _Opened()


def test_an_unknown_name_says_what_would_help(folder: Path) -> None:
    library = PatchLibrary([folder])
    asked = "no patch is called"
    assert refusal(lambda: library.load("x"), UsageError) == f"{asked} 'x' in the server's patch folders"
    assert refusal(lambda: library.load("good.yaml"), UsageError) == f"{asked} 'good.yaml'; leave the ending out"
    assert refusal(lambda: PatchLibrary([]).load("x"), UsageError) == f"{asked} 'x': this server has no patch folder"


def test_a_folder_that_goes_away_holds_nothing_until_it_comes_back(folder: Path) -> None:
    library = PatchLibrary([folder])
    folder.rename(folder.with_name("moved"))
    assert library.listing() == []
    folder.with_name("moved").rename(folder)
    assert library.names() == ["good"]


def test_a_folder_is_checked_before_it_is_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert check_folder("patches") == folder
    assert refusal(lambda: check_folder("nowhere"), UsageError) == "nowhere: no such folder"
    assert refusal(lambda: check_folder("secret.yaml"), UsageError) == "secret.yaml: is not a folder"
    monkeypatch.setattr("vllm_surgery.patch.folders.os.access", lambda *_: False)
    assert refusal(lambda: check_folder("patches"), UsageError) == "patches: Permission denied"


def test_the_schema_beside_patches_is_none_of_them() -> None:
    assert PatchLibrary([Path(__file__).parents[2] / "patches"]).names() == [
        "smollm2-135m-instruct-lists",
        "smollm2-135m-instruct-noloop",
    ]
