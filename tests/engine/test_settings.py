# SPDX-License-Identifier: Apache-2.0
"""What an operator may write under ``vllm_surgery`` in --additional-config."""

from __future__ import annotations

import copy
import json
import pickle
from typing import TYPE_CHECKING, Any

import pytest

from tests.models import patch_of
from vllm_surgery import Patch, PatchError, PatchSet, UsageError
from vllm_surgery.engine.settings import CarriedPatch, Settings, disabled

if TYPE_CHECKING:
    from pathlib import Path

GOOD = patch_of({(1, 2): -1.0}, "good")


@pytest.mark.parametrize("config", [{}, {"another_plugin": 1}, None, object()])
def test_no_settings_ask_for_no_patch(config: object) -> None:
    assert len(Settings.of(config).load()) == 0


def test_a_patch_may_be_a_file_name(tmp_path: Path) -> None:
    file = tmp_path / "good.json"
    file.write_text(json.dumps(GOOD))
    (member,) = Settings.of({"vllm_surgery": {"patches": [str(file)]}}).load().members
    assert (member.source, member.patch) == (str(file), Patch.from_data(GOOD))


def test_a_patch_may_be_the_patch_itself() -> None:
    (member,) = Settings.of({"vllm_surgery": {"patches": [GOOD]}}).load().members
    assert (member.source, member.patch.name) == ("vllm_surgery.patches[0] (good)", "good")


def test_carried_patches_survive_the_config_with_their_file_names(tmp_path: Path) -> None:
    file = tmp_path / "good.json"
    file.write_text(json.dumps(GOOD))
    patches = PatchSet.load([file])
    config = Settings().carrying(patches).put_into({"another_plugin": 1})
    file.unlink()
    assert config["another_plugin"] == 1
    assert Settings.of(json.loads(json.dumps(config))).load() == patches


def test_a_log_shows_carried_patches_by_their_ids_in_every_process() -> None:
    config = Settings(patches=[GOOD], log_text=True).put_into({})
    for arrived in (config, pickle.loads(pickle.dumps(config)), copy.deepcopy(config)):
        assert str(arrived) == str({"vllm_surgery": {"patches": [CarriedPatch(GOOD)], "log_text": True}})
        assert f"'patches': [<{Patch.from_data(GOOD).id}>]" in str(arrived)
        assert Settings.of(arrived).load().members[0].patch == Patch.from_data(GOOD)
    assert repr(CarriedPatch({"name": "secret"})) == "<a patch that is refused>"


def test_vllm_logs_no_more_than_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    api_utils = pytest.importorskip("vllm.entrypoints.serve.utils.api_utils")
    sealed = {**GOOD, "seal": {"neurons/1/2": "3f" * 32}}
    shown: list[str] = []
    monkeypatch.setattr(api_utils.logger, "info", lambda text, *args: shown.append(text % args))
    config = Settings(patches=[sealed]).put_into({})
    monkeypatch.setattr(api_utils, "get_non_default_args", lambda args: {"additional_config": config})
    api_utils.log_non_default_args(None)
    assert Patch.from_data(sealed).id in shown[0]
    assert "3f3f" not in shown[0]


def test_other_settings_are_carried_along(tmp_path: Path) -> None:
    settings = Settings(patch_dirs=[str(tmp_path)], allow_remote_swaps=True, allow_inline=False, mask_buffers=True)
    carried = Settings.of(settings.carrying(PatchSet()).put_into({}))
    assert carried == settings


def test_files_to_follow_are_carried_by_their_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "good.json"
    file.write_text(json.dumps(GOOD))
    monkeypatch.chdir(tmp_path)
    settings = Settings(patches=["good.json"], watch=True)
    carried = Settings.of(settings.carrying(settings.load()).put_into({}))
    assert carried.watched_files() == settings.watched_files() == [str(file)]
    assert carried.carrying(carried.load()) == carried


def test_files_to_follow_may_be_named_themselves() -> None:
    assert Settings(patches=[GOOD], watch=["/config/good.json"]).watched_files() == ["/config/good.json"]


@pytest.mark.parametrize("patches", [[], ["good.json"], [GOOD]])
def test_by_default_nothing_is_followed(patches: list[Any]) -> None:
    assert Settings(patches=patches).watched_files() == []
    assert "watch" not in Settings(patches=patches).carrying(PatchSet()).put_into({})["vllm_surgery"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"patch": []}, r"additional_config\.vllm_surgery\.patch: Extra inputs are not permitted"),
        ({"patches": "a.yaml"}, r"additional_config\.vllm_surgery\.patches: Input should be a valid list"),
        ({"patches": [1]}, r"additional_config\.vllm_surgery\.patches\.0: Input should be a valid string"),
        ({"watch": True}, r"additional_config\.vllm_surgery: watch: true needs `patches` that are files"),
        ({"watch": True, "patches": [GOOD]}, r"watch: true needs `patches` that are files"),
        ({"watch": "a.yaml"}, r"additional_config\.vllm_surgery\.watch"),
        ({"patch_dirs": "folder"}, r"additional_config\.vllm_surgery\.patch_dirs: Input should be a valid list"),
        ({"allow_inline": "no"}, r"additional_config\.vllm_surgery\.allow_inline: Input should be a valid boolean"),
        ([], r"additional_config\.vllm_surgery: Input should be a valid dictionary"),
    ],
)
def test_wrong_settings_are_named(settings: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Settings.of({"vllm_surgery": settings})


def test_a_missing_file_is_named() -> None:
    with pytest.raises(UsageError, match=r"^/nowhere/patch\.yaml: no such file$"):
        Settings(patches=["/nowhere/patch.yaml"]).load()


def test_a_wrong_inline_patch_is_named() -> None:
    with pytest.raises(PatchError, match=r"^vllm_surgery\.patches\[1\] \(bad\): edits: is missing$"):
        Settings(patches=[GOOD, {"version": 1, "name": "bad"}]).load()


@pytest.mark.parametrize(
    ("value", "expected"), [("1", True), ("true", True), ("yes", True), ("", False), ("0", False), ("False", False)]
)
def test_the_switch_that_turns_it_off(value: str, expected: bool) -> None:
    assert disabled({"VLLM_SURGERY_DISABLE": value}) is expected


def test_it_is_on_by_default() -> None:
    assert not disabled({})
