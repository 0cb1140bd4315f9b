# SPDX-License-Identifier: Apache-2.0
"""What `vllm-surgery serve` hands over to vLLM's own serve command."""

from __future__ import annotations

import argparse
import json
import logging
import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.models import patch_of
from vllm_surgery import Patch, PatchSet, UsageError
from vllm_surgery.engine import serve as module
from vllm_surgery.engine.settings import Settings
from vllm_surgery.patch.patch_set import SourcedPatch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PATCHES = PatchSet((SourcedPatch("a.yaml", Patch.from_data(patch_of({(0, 0): -1.0}))),))


SPAWNING = "VLLM_WORKER_MULTIPROC_METHOD"


class Command:
    """Stands for vLLM's serve command; keeps the arguments that it was run with."""

    def __init__(self) -> None:
        self.args: argparse.Namespace | None = None

    def subparser_init(self, subparsers: Any) -> None:
        parser = subparsers.add_parser("serve")
        parser.add_argument("model_tag")
        parser.add_argument("--port", type=int)
        parser.add_argument("--grpc", action="store_true")
        parser.add_argument("--headless", action="store_true")
        parser.add_argument("--additional-config", type=json.loads, default={})

    def validate(self, args: argparse.Namespace) -> None:
        assert self.args is None

    def cmd(self, args: argparse.Namespace) -> None:
        self.args = args


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., argparse.Namespace]:
    """Serves with a fake of vLLM's command; gives the arguments that reached it."""
    command = Command()
    for point, value in {
        "SERVE_COMMAND": lambda: [command],
        "CLI_LOGGING": lambda args: None,
        "CLI_PARSER": argparse.ArgumentParser,
    }.items():
        touched = getattr(module.touchpoints, point)
        monkeypatch.setattr(touched.owner(), touched.name, value)

    monkeypatch.setenv("VLLM_PLUGINS", "vllm_surgery")
    monkeypatch.setenv(SPAWNING, "")
    monkeypatch.delenv(SPAWNING)

    def run(patches: PatchSet, *arguments: str, **options: Any) -> argparse.Namespace:
        module.serve(patches, arguments, **options)
        assert command.args is not None
        return command.args

    return run


def test_vllm_gets_its_own_arguments(serve: Callable[..., argparse.Namespace]) -> None:
    args = serve(PatchSet(), "model", "--port", "1")
    assert (args.model_tag, args.port, args.additional_config) == ("model", 1, {})


def test_workers_are_spawned_as_by_vllms_own_command_line(serve: Callable[..., argparse.Namespace]) -> None:
    serve(PatchSet(), "model")
    assert os.environ[SPAWNING] == "spawn"


def test_another_way_to_start_workers_is_left_as_it_was_asked_for(
    serve: Callable[..., argparse.Namespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SPAWNING, "fork")
    serve(PatchSet(), "model")
    assert os.environ[SPAWNING] == "fork"


def test_the_patches_travel_in_the_config(serve: Callable[..., argparse.Namespace]) -> None:
    args = serve(PATCHES, "model")
    assert Settings.of(args.additional_config).load() == PATCHES


def test_another_plugins_settings_stay(serve: Callable[..., argparse.Namespace]) -> None:
    args = serve(PATCHES, "model", "--additional-config", '{"another_plugin": 1}')
    assert args.additional_config["another_plugin"] == 1
    assert Settings.of(args.additional_config).load() == PATCHES


def test_patches_in_two_places_are_refused(serve: Callable[..., argparse.Namespace]) -> None:
    with pytest.raises(UsageError, match="--patch and --additional-config both name patches"):
        serve(PATCHES, "model", "--additional-config", '{"vllm_surgery": {"patches": ["b.yaml"]}}')


def test_a_server_that_is_told_to_ignore_patches_says_so(
    serve: Callable[..., argparse.Namespace], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("VLLM_SURGERY_DISABLE", "1")
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    serve(PATCHES, "model")
    assert f"vllm-surgery: VLLM_SURGERY_DISABLE is set, so {PATCHES.id} is not applied" in caplog.text


def test_patch_folders_travel_in_the_config(serve: Callable[..., argparse.Namespace], tmp_path: Path) -> None:
    args = serve(PatchSet(), "model", patch_dirs=[tmp_path])
    assert Settings.of(args.additional_config) == Settings(patch_dirs=[str(tmp_path)])


def test_patch_folders_may_be_named_in_both_places(serve: Callable[..., argparse.Namespace], tmp_path: Path) -> None:
    config = '{"vllm_surgery": {"patch_dirs": ["/config"], "allow_inline": false}}'
    args = serve(PatchSet(), "model", "--additional-config", config, patch_dirs=[tmp_path])
    assert Settings.of(args.additional_config) == Settings(patch_dirs=["/config", str(tmp_path)], allow_inline=False)


def test_followed_files_travel_in_the_config(serve: Callable[..., argparse.Namespace], tmp_path: Path) -> None:
    args = serve(PATCHES, "model", watch=[tmp_path / "a.yaml"])
    assert Settings.of(args.additional_config).watched_files() == [str(tmp_path / "a.yaml")]


@pytest.mark.parametrize("name", ["--grpc", "--headless", "VLLM_USE_RUST_FRONTEND"])
@pytest.mark.parametrize("asked", ["patch_dirs", "watch"])
def test_a_server_without_our_routes_neither_follows_files_nor_has_folders(
    serve: Callable[..., argparse.Namespace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, asked: str
) -> None:
    flags = [name] if name.startswith("--") else []
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "0" if flags else "1")
    said = (
        f"--patch-dir, --watch, --patch-slots and --on-loop need vLLM's HTTP server in Python, which {name} leaves out"
    )
    with pytest.raises(UsageError, match=f"^{said}$"):
        serve(PATCHES, "model", *flags, **{asked: [tmp_path]})
    assert serve(PATCHES, "model", *flags).model_tag == "model"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another package's plugins, one of each kind."""
    metadata = tmp_path / "other-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1\n")
    groups = ("general", "platform", "stat_logger", "endpoint")
    (metadata / "entry_points.txt").write_text(
        "".join(f"[vllm.{group}_plugins]\nother_{group} = nowhere:nothing\n" for group in groups)
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("installed")
def test_without_an_allow_list_everything_is_loaded_that_was_before_but_no_other_routes(
    serve: Callable[..., argparse.Namespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_PLUGINS")
    serve(PATCHES, "model")
    allowed = os.environ["VLLM_PLUGINS"].split(",")
    assert {"vllm_surgery", "lora_filesystem_resolver", "lora_hf_hub_resolver"} <= set(allowed)
    assert {"other_general", "other_platform", "other_stat_logger"} <= set(allowed)
    assert "other_endpoint" not in allowed


def test_a_plugin_that_is_off_makes_no_allow_list(
    serve: Callable[..., argparse.Namespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_PLUGINS")
    monkeypatch.setenv("VLLM_SURGERY_DISABLE", "1")
    serve(PatchSet(), "model")
    assert "VLLM_PLUGINS" not in os.environ


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "vllm_surgery"),
        ("other", "other,vllm_surgery"),
        ("other,vllm_surgery", "other,vllm_surgery"),
    ],
)
def test_an_allow_list_of_plugins_gets_this_one(
    serve: Callable[..., argparse.Namespace], monkeypatch: pytest.MonkeyPatch, before: str, after: str
) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", before)
    serve(PATCHES, "model")
    assert os.environ["VLLM_PLUGINS"] == after
