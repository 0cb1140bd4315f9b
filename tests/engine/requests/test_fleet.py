# SPDX-License-Identifier: Apache-2.0
"""Three servers with slots: a swap fills a slot on all of them or on none, and no stream changes its patch."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.engine.server import Server, running_server
from tests.engine.streams import Streams
from tests.engine.test_canary import write_patches
from tests.engine.test_fleet import LONGER, OPTIONS, SERVERS, answers, of, states
from tests.localization.planted import Planted, dense_loop
from tests.waiting import until
from vllm_surgery.cli import main

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return dense_loop(tmp_path_factory.mktemp("planted") / "model")


@pytest.fixture(scope="module")
def patches(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_patches(planted, tmp_path_factory.mktemp("patches"))


@pytest.fixture(scope="module")
def servers(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    """Three of them; the last one is killed in the last test."""

    def start(_: int) -> Server:
        folder = tmp_path_factory.mktemp("server")
        slots = ("--patch-slots", "2")
        return stack.enter_context(running_server(folder, str(planted.folder), *slots, *OPTIONS, *LONGER))

    with ExitStack() as stack, ThreadPoolExecutor(SERVERS) as threads:
        yield list(threads.map(start, range(SERVERS)))


def defaults(servers: list[Server]) -> list[dict[str, float]]:
    """What requests get that choose nothing: by name, without digests."""
    return [
        {name.partition("@")[0]: share for name, share in state["slots"]["default"].items()} for state in states(servers)
    ]


def test_all_fill_a_slot_under_load_and_streams_keep_theirs(
    servers: list[Server], patches: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = answers(servers)
    with ExitStack() as stack:
        streams = [stack.enter_context(Streams(server.url, 2, 200, vocabulary=200)) for server in servers]
        for stream in streams:
            until(lambda stream=stream: len(stream.done), lambda begun: begun >= 3)  # type: ignore[misc]
        assert main(["swap", patches["cure"], *of(servers)]) == 0
    assert [stream.error for one in streams for stream in one.done if stream.error] == []
    assert {stream.finish for one in streams for stream in one.done} == {"length"}
    assert defaults(servers) == [{"cure": 1.0}] * SERVERS
    after = answers(servers)
    assert (len(before), len(after)) == (1, 1)
    assert before != after
    assert main(["status", *of(servers)]) == 0
    assert capsys.readouterr().out.endswith("3 servers serve the same\n")


def test_a_request_chooses_on_each_of_them_what_is_in_a_slot(servers: list[Server]) -> None:
    model = httpx.get(f"{servers[0].url}/v1/models", timeout=None).json()["data"][0]["id"]
    body = {"prompt": [1, 19, 20], "max_tokens": 4, "temperature": 0}
    for choice, name in ((f"{model}@cure", "cure"), (f"{model}@none", "none")):
        for server in servers:
            answer = httpx.post(f"{server.url}/v1/completions", json={**body, "model": choice}, timeout=None)
            assert answer.raise_for_status().headers["x-surgery-patch"].partition("@")[0] == name


def test_a_rehearsal_leaves_all_as_they_are(servers: list[Server], patches: dict[str, str]) -> None:
    before = states(servers)
    assert main(["swap", patches["decoy"], "--check", *of(servers)]) == 0
    assert defaults(servers) == [{"cure": 1.0}] * SERVERS
    assert [state["slots"]["patches"] for state in states(servers)] == [state["slots"]["patches"] for state in before]


def test_when_one_is_lost_in_the_middle_the_others_serve_what_they_served(
    servers: list[Server], patches: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    *others, doomed = servers
    before, asked = answers(others), [server.log.count("PUT /v1/surgery") for server in others]
    os.killpg(doomed.process.pid, signal.SIGSTOP)  # It takes the request, and never answers.
    codes: list[int] = []
    swapping = threading.Thread(target=lambda: codes.append(main(["swap", patches["decoy"], *of(servers)])))
    swapping.start()
    until(lambda: all(server.log.count("PUT /v1/surgery") > count for server, count in zip(others, asked, strict=True)))
    os.killpg(doomed.process.pid, signal.SIGKILL)
    doomed.process.wait()
    swapping.join()
    assert codes == [1]
    assert " gone" in capsys.readouterr().out
    assert defaults(others) == [{"cure": 1.0}] * len(others)
    assert answers(others) == before
