# SPDX-License-Identifier: Apache-2.0
"""Swaps by slots on a server at work: no request fails, and each is answered under one patch from its first token on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.engine.server import SMALL, Server, running_server
from tests.engine.streams import MODEL, TIE, Stream, Streams, ask
from tests.engine.test_live import FIRST, OPTIONS, PROMPT, SECOND, SETS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.engine

SWAPS, STREAMS, TOKENS = 100, 16, 24
NAMES = ("none", "first", "second")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, family_model: Callable[[str], Path]) -> Iterator[Server]:
    arguments = (str(family_model("Llama")), *OPTIONS, *SMALL, "--patch-slots", "2")
    with running_server(tmp_path_factory.mktemp("live_slots"), *arguments) as running:
        put(running, fill=[FIRST, SECOND])
        yield running


def put(server: Server, **asked: Any) -> dict[str, Any]:
    answer = httpx.put(f"{server.url}/v1/surgery", json=asked, timeout=120)
    assert answer.is_success, answer.text
    told: dict[str, Any] = answer.json()
    return told


def is_of(server: Server, stream: Stream, name: str) -> bool:
    """Whether every token of a stream is the most likely one under a patch."""
    whole = stream.prompt + stream.tokens
    choice = ask(server.url, whole, 1, prompt_logprobs=1, model=f"{MODEL}@{name}")
    told = choice["prompt_logprobs"][len(stream.prompt) :]
    return all(
        max(entry["logprob"] for entry in step.values()) - step[str(token)]["logprob"] < TIE
        for token, step in zip(stream.tokens, told, strict=True)
    )


@pytest.fixture(scope="module")
def served(server: Server) -> Streams:
    """Streams that ran while patches were swapped all the time."""
    with Streams(server.url, STREAMS, TOKENS) as streams:
        for number in range(SWAPS):
            report = put(server, patches=SETS[NAMES[number % 3]])
            assert report["milliseconds"]["pause"] == 0
    return streams


def test_no_request_fails_and_none_loses_a_token(served: Streams) -> None:
    assert len(served.done) >= STREAMS
    assert {(stream.error, stream.finish, len(stream.tokens)) for stream in served.done} == {(None, "length", TOKENS)}


def test_every_stream_is_of_one_patch(server: Server, served: Streams) -> None:
    found = {name: sum(is_of(server, stream, name) for stream in served.done) for name in NAMES}
    unknown = [stream for stream in served.done if not any(is_of(server, stream, name) for name in NAMES)]
    assert not unknown
    assert all(found.values()), f"each patch must have answered some: {found}"


def test_requests_that_clients_give_up_leave_their_slots(server: Server) -> None:
    body = {"model": f"{MODEL}@first", "prompt": PROMPT, "max_tokens": 200, "ignore_eos": True, "stream": True}
    for _ in range(8):
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as response:
            next(response.iter_lines())
    put(server, patches=[])
    for _ in range(600):
        slots = httpx.get(f"{server.url}/v1/surgery", timeout=60).json()["slots"]
        if not any(patch["users"] for patch in slots["patches"]):
            break
    assert [patch["users"] for patch in slots["patches"]] == [0, 0]


def test_a_thousand_fills_in_a_row_take_no_more_than_there_is(server: Server) -> None:
    refused = 0
    with httpx.Client(base_url=server.url, timeout=120) as client:
        for number in range(1_000):
            patch = {
                **FIRST,
                "name": f"p{number}",
                "edits": [{"op": "scale", "factor": 2.0 + number, "neurons": {"0": [1]}}],
            }
            refused += client.put("/v1/surgery", json={"fill": [patch]}).status_code == 409
        assert refused == 1_000, "both slots hold patches that are offered"
        names = [model["id"] for model in client.get("/v1/models").json()["data"]]
    assert names == [MODEL, *(f"{MODEL}@{name}" for name in ("none", "first", "second"))]
