# SPDX-License-Identifier: Apache-2.0
"""A canary on requests of a real server: a good patch is promoted, bad ones are taken back, and nobody looks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.engine.prompting import Lists
from tests.engine.server import SMALL, Server, running_server
from tests.engine.streams import MODEL
from vllm_surgery.cli import main

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.localization.planted import Planted

pytestmark = pytest.mark.engine

OPTIONS = ("--served-model-name", MODEL, "--dtype", "float32", *SMALL)
RULE = ("--min-answers", "20", "--max-answers", "320", "--margin", "0.1", "--interval", "1", "--max-minutes", "20")


@pytest.fixture(scope="module")
def server(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    arguments = (str(planted.folder), *OPTIONS, "--patch-slots", "4")
    with running_server(tmp_path_factory.mktemp("canary"), *arguments) as server, Lists([server.url], MODEL) as lists:
        yield server
    assert lists.errors == []


def canary(server: Server, file: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    code = main(["canary", file, *RULE, "--share", "0.5", "--url", server.url, "--json"])
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert code == (0 if report["promoted"] else 1)
    return report


def default(server: Server) -> dict[str, float]:
    shares: dict[str, float] = httpx.get(f"{server.url}/v1/surgery", timeout=None).json()["slots"]["default"]
    return shares


def test_a_patch_that_ends_loops_is_promoted(
    server: Server, patches: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    report = canary(server, patches["cure"], capsys)
    assert (report["promoted"], report["by"], report["before"]) == (True, "requests", "none")
    assert report["last"]["canary"]["looped"] == 0
    assert report["last"]["baseline"]["looped"] > 0
    assert default(server) == {"cure": 1.0}


@pytest.mark.parametrize(
    ("name", "reasons"),
    [
        ("decoy", {"more answers loop", "fewer answers end by themselves"}),
        ("breaker", {"sound answers have another length"}),
    ],
)
def test_a_patch_that_brings_loops_back_or_breaks_answers_is_taken_back(
    server: Server, patches: dict[str, str], name: str, reasons: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    report = canary(server, patches[name], capsys)
    assert not report["promoted"]
    assert report["reason"] in reasons
    assert [outcome["fate"] for outcome in report["outcomes"]] == ["taken back"]
    assert default(server) == {"cure": 1.0}
