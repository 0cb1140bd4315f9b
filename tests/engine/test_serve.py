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
from vllm_surgery.stack import SourcedPatch

if TYPE_CHECKING:
    from collections.abc import Callable

PATCHES = PatchSet((SourcedPatch("a.yaml", Patch.from_data(patch_of({(0, 0): -1.0}))),))


class Command:
    """Stands for vLLM's serve command; keeps the arguments that it was run with."""

    def __init__(self) -> None:
        self.args: argparse.Namespace | None = None

    def subparser_init(self, subparsers: Any) -> None:
        parser = subparsers.add_parser("serve")
        parser.add_argument("model_tag")
        parser.add_argument("--port", type=int)
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
        "CLI_SETUP": lambda: None,
        "CLI_LOGGING": lambda args: None,
        "CLI_PARSER": argparse.ArgumentParser,
    }.items():
        touched = getattr(module.touchpoints, point)
        monkeypatch.setattr(touched.owner(), touched.name, value)

    def run(patches: PatchSet, *arguments: str) -> argparse.Namespace:
        module.serve(patches, arguments)
        assert command.args is not None
        return command.args

    return run


def test_vllm_gets_its_own_arguments(serve: Callable[..., argparse.Namespace]) -> None:
    args = serve(PatchSet(), "model", "--port", "1")
    assert (args.model_tag, args.port, args.additional_config) == ("model", 1, {})


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


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, None),
        ("", "vllm_surgery"),
        ("other", "other,vllm_surgery"),
        ("other,vllm_surgery", "other,vllm_surgery"),
    ],
)
def test_an_allow_list_of_plugins_gets_this_one(
    serve: Callable[..., argparse.Namespace], monkeypatch: pytest.MonkeyPatch, before: str | None, after: str | None
) -> None:
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    if before is not None:
        monkeypatch.setenv("VLLM_PLUGINS", before)
    serve(PATCHES, "model")
    assert os.environ.get("VLLM_PLUGINS") == after
