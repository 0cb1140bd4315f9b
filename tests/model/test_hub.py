# SPDX-License-Identifier: Apache-2.0
"""Models by their names: in the Hub's cache on this machine, and from a server on loopback that speaks its protocol."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.examples import patch_data, refusal
from tests.folders import write_model
from tests.hub import COMMIT, Hub, serving
from vllm_surgery import ModelFolder, UsageError, plan
from vllm_surgery.cli import main
from vllm_surgery.model.hub import hub_cache, inner_path, is_name, local_path
from vllm_surgery.patch.format import Patch

OTHER = "f" * 40


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the Hub's, in a folder where nothing else lies."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def keep(cache: Path, commit: str = COMMIT, ref: str | None = "main", name: str = "models--org--tiny") -> Path:
    """Puts a model's snapshot into the cache."""
    outer = cache / name
    if ref is not None:
        (outer / "refs").mkdir(parents=True, exist_ok=True)
        (outer / "refs" / ref).write_text(commit)
    return write_model(outer / "snapshots" / commit)


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
        ({"HUGGINGFACE_HUB_CACHE": "/a"}, "/a"),
        ({"HF_HOME": "/b", "XDG_CACHE_HOME": "/c"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
        ({}, str(Path("~/.cache/huggingface/hub").expanduser())),
    ],
)
def test_the_cache_is_where_the_hubs_library_has_it(environment: dict[str, str], place: str) -> None:
    assert str(hub_cache(environment)) == place


@pytest.mark.parametrize("word", ["org/tiny", "org/tiny@main", f"org/tiny@{COMMIT}"])
def test_a_name_stands_for_its_snapshot(cache: Path, word: str) -> None:
    snapshot = keep(cache)
    assert ModelFolder(word).path == snapshot
    assert (ModelFolder(word).facts.base, ModelFolder(word).facts.revision) == ("org/tiny", COMMIT)


def test_a_revision_is_that_one(cache: Path) -> None:
    keep(cache)
    other = keep(cache, OTHER, "v2")
    assert ModelFolder("org/tiny@v2").path == other
    assert refusal(lambda: ModelFolder("org/tiny@v3"), UsageError) == "org/tiny@v3: no such model folder"


def test_the_outer_folder_finds_its_snapshot(cache: Path) -> None:
    snapshot = keep(cache)
    keep(cache, OTHER, None)
    assert ModelFolder(cache / "models--org--tiny").path == snapshot


def test_the_only_snapshot_needs_no_ref(cache: Path) -> None:
    snapshot = keep(cache, ref=None)
    assert local_path(cache / "models--org--tiny") == snapshot


def test_several_snapshots_without_a_ref_are_asked_about(cache: Path) -> None:
    keep(cache, ref=None)
    keep(cache, OTHER, None)
    outer = cache / "models--org--tiny"
    said = f"{outer}: holds {COMMIT}, {OTHER}; name the folder of one"
    assert refusal(lambda: ModelFolder(outer), UsageError) == said


def test_an_outer_folder_without_snapshots_is_refused(cache: Path) -> None:
    (cache / "models--org--tiny" / "snapshots").mkdir(parents=True)
    said = f"{cache / 'models--org--tiny'}: holds no snapshot; name the folder of one"
    assert refusal(lambda: ModelFolder("org/tiny"), UsageError) == said


@pytest.mark.parametrize("ref", ["../../../secret", "..", ".", "", "x/y", "a\0b"])
def test_no_ref_leads_out_of_the_cache(cache: Path, ref: str) -> None:
    keep(cache)
    keep(cache, OTHER, None)
    (cache / "models--org--tiny" / "refs" / "main").write_bytes(ref.encode())
    assert "name the folder of one" in refusal(lambda: ModelFolder("org/tiny"), UsageError)


@pytest.mark.parametrize(
    "word", ["org/tiny/more", "../tiny", "org/ti ny", "org/tiny@../x", "/org/tiny", "org", "a/b@c/d"]
)
def test_what_is_no_name_is_a_folder_that_isnt_there(word: str, cache: Path) -> None:
    keep(cache)
    assert refusal(lambda: ModelFolder(word), UsageError) == f"{word}: no such model folder"


def test_a_folder_goes_before_a_name(cache: Path) -> None:
    keep(cache)
    write_model(Path("org/tiny"))
    assert ModelFolder("org/tiny").path == Path("org/tiny")


def test_a_path_that_is_misspelt_is_no_name() -> None:
    Path("models").mkdir()
    assert (is_name("models/tiny"), is_name("org/tiny"), is_name("./tiny")) == (False, True, False)


def test_a_server_is_given_the_snapshot_of_an_outer_folder(cache: Path) -> None:
    snapshot = keep(cache)
    words = [str(cache / "models--org--tiny"), "org/tiny", "--port", "8000", str(snapshot)]
    assert [*map(inner_path, words)] == [str(snapshot), *words[1:]]


def test_python_takes_names(cache: Path) -> None:
    keep(cache)
    assert plan(Patch.from_data(patch_data()), "org/tiny").units == 1


# From the Hub


@pytest.fixture
def patch() -> str:
    Path("p.json").write_text(json.dumps(patch_data()))
    return "p.json"


def test_a_model_that_isnt_here_comes_from_the_hub(
    patch: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = write_model(tmp_path / "made")
    files = {file.name: file.read_bytes() for file in made.iterdir()} | {
        "weights.gguf": b"GGUF",
        "pytorch_model.bin": b"x",
    }
    with serving(Hub(repository="org/tiny", files=files)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        assert main(["check", patch, "--model", "org/tiny"]) == 0
        asked = len(hub.asked)
        assert main(["check", patch, "--model", "org/tiny"]) == 0
        assert len(hub.asked) == asked  # The second time it lies in the cache.
    assert "plan for org/tiny: 1 unit in 1 tensor" in capsys.readouterr().out
    assert {file.name for file in (cache / "models--org--tiny" / "snapshots" / COMMIT).iterdir()} == {
        file.name for file in made.iterdir()
    }


def test_a_model_that_the_hub_hasnt_is_refused_in_one_line(
    patch: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(Hub(repository="org/other")) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        assert main(["check", patch, "--model", "org/tiny"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("vllm-surgery: error: org/tiny: no such folder, and can't be had from the Hub: ")
    assert err.count("\n") == 1


def test_a_misspelt_path_asks_no_hub(
    patch: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("models").mkdir()
    with serving(Hub()) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        assert main(["check", patch, "--model", "models/tiny"]) == 2
    assert hub.asked == []
    assert capsys.readouterr().err == "vllm-surgery: error: models/tiny: no such model folder\n"
