# SPDX-License-Identifier: Apache-2.0
"""Two API servers in front of two engines: whichever take a request, it gets the same patch, from each change on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.engine.server import SMALL, Server, running_server
from tests.engine.streams import MODEL, body
from tests.engine.test_live import FIRST, OPTIONS, PROMPT, SECOND, SETS, state
from tests.engine.test_live import put as swap
from vllm_surgery import Patch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.engine

TRIES = 16
"""Connections are spread over servers by the kernel, and requests over engines by vLLM: with so many, each is met."""
IDS = {"none": "none", "first": Patch.from_data(FIRST).id, "second": Patch.from_data(SECOND).id}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, family_model: Callable[[str], Path]) -> Iterator[Server]:
    two = ("--api-server-count", "2", "--data-parallel-size", "2", "--patch-slots", "3")
    arguments = (str(family_model("Llama")), *OPTIONS, *SMALL, *two)
    with running_server(tmp_path_factory.mktemp("servers"), *arguments, VLLM_ENABLE_V1_MULTIPROCESSING="1") as running:
        yield running


def answer(server: Server, **more: Any) -> tuple[str, tuple[int, ...]]:
    """The patch that an answer says it is by, and its tokens. Each request comes over a new connection."""
    told = httpx.post(f"{server.url}/v1/completions", json=body(PROMPT, 6, **more), timeout=None).raise_for_status()
    return told.headers["x-surgery-patch"], tuple(told.json()["choices"][0]["token_ids"])


def test_a_swap_through_either_is_heeded_by_both_and_by_all_engines(server: Server) -> None:
    found = {}
    for epoch, name in enumerate(("first", "second", "none"), start=1):
        report = swap(server.url, SETS[name]).raise_for_status().json()
        assert (report["id"], report["epoch"], report["milliseconds"]["pause"]) == (IDS[name], epoch, 0)
        assert {(told["active"], told["epoch"]) for told in (state(server.url) for _ in range(6))} == {
            (IDS[name], epoch)
        }
        answers = {answer(server) for _ in range(TRIES)}
        assert len(answers) == 1, "one patch, and one answer"
        ((found[name], _),) = answers
    assert found == IDS
    metrics = httpx.get(f"{server.url}/metrics", timeout=None).text.splitlines()
    finished = [line for line in metrics if line.startswith("vllm:request_success_total{")]
    busy = {line.split('engine="')[1][0] for line in finished if not line.endswith(" 0.0")}
    assert busy == {"0", "1"}, "both engines must have answered, or this shows nothing"


def test_a_user_draws_the_same_share_wherever(server: Server) -> None:
    asked = {"fill": [FIRST, SECOND], "default": {"first": 0.4, "second": 0.3, "none": 0.3}}
    httpx.put(f"{server.url}/v1/surgery", json=asked, timeout=None).raise_for_status()
    of_patch = {IDS[name]: answer(server, model=f"{MODEL}@{name}") for name in IDS}
    users = [f"user-{number}" for number in range(12)]
    drawn = [[answer(server, user=user) for user in users] for _ in range(3)]
    assert drawn[0] == drawn[1] == drawn[2]
    assert {told for told, _ in drawn[0]} == {*IDS.values()}
    assert all(told == of_patch[told[0]] for told in drawn[0]), "the header says what the answer is"
