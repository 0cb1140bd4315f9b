# SPDX-License-Identifier: Apache-2.0
"""Swaps by slots on a server at work: no request fails, and each is answered under one patch from its first token on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.engine.server import SMALL, Server, running_server
from tests.engine.streams import MODEL, TIE, Stream, Streams, ask
from tests.engine.test_live import FIRST, OPTIONS, PROMPT, SECOND, SETS, state
from tests.models import patch_of
from tests.waiting import until
from vllm_surgery import Patch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.engine

SWAPS, STREAMS, TOKENS = 100, 16, 24
NAMES = ("none", "first", "second")
THIRD = patch_of({(1, 5): 0.5}, "third")
SLOTS = 4


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that the server follows."""
    file = tmp_path_factory.mktemp("followed") / "wanted.json"
    file.write_text(json.dumps(FIRST))
    return file


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, family_model: Callable[[str], Path], wanted: Path
) -> Iterator[Server]:
    follow = ("--patch", str(wanted), "--watch", "--patch-slots", str(SLOTS))
    with running_server(
        tmp_path_factory.mktemp("live_slots"), str(family_model("Llama")), *OPTIONS, *SMALL, *follow
    ) as running:
        put(running, fill=[FIRST, SECOND])
        yield running


def put(server: Server, **asked: Any) -> dict[str, Any]:
    answer = httpx.put(f"{server.url}/v1/surgery", json=asked, timeout=None)
    assert answer.is_success, answer.text
    told: dict[str, Any] = answer.json()
    return told


def is_of(server: Server, stream: Stream, name: str) -> bool:
    """Whether every token of a stream is the most likely one under a patch."""
    choice = ask(server.url, stream.prompt + stream.tokens, 1, prompt_logprobs=1, model=f"{MODEL}@{name}")
    told = choice["prompt_logprobs"][len(stream.prompt) :]
    return all(
        max(entry["logprob"] for entry in step.values()) - step[str(token)]["logprob"] < TIE
        for token, step in zip(stream.tokens, told, strict=True)
    )


@pytest.fixture(scope="module")
def served(server: Server) -> Streams:
    """Streams that ran while patches were swapped all the time, the last three each until it had streams of its own."""
    with Streams(server.url, STREAMS, TOKENS) as streams:
        until(lambda: streams.flowing)
        for number in range(SWAPS):
            report = put(server, patches=SETS[NAMES[number % 3]])
            assert report["milliseconds"]["pause"] == 0
            if number >= SWAPS - len(NAMES):
                begun = len(streams.done)
                until(lambda begun=begun: len(streams.done) >= begun + STREAMS)
    return streams


def test_no_request_fails_and_none_loses_a_token(served: Streams) -> None:
    assert len(served.done) >= STREAMS
    assert {(stream.error, stream.finish, len(stream.tokens)) for stream in served.done} == {(None, "length", TOKENS)}


def test_every_stream_is_of_one_patch(server: Server, served: Streams) -> None:
    streams = [*served.done[: 2 * STREAMS], *served.done[-3 * STREAMS :]]
    found = [[name for name in NAMES if is_of(server, stream, name)] for stream in streams]
    assert all(found), "each must be of one patch from its first token to its last"
    assert {name for names in found if len(names) == 1 for name in names} == {*NAMES}, "or this shows nothing"


def test_requests_that_clients_give_up_leave_their_slots(server: Server) -> None:
    body = {"model": f"{MODEL}@first", "prompt": PROMPT, "max_tokens": 200, "ignore_eos": True, "stream": True}
    for _ in range(8):
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=None) as response:
            next(response.iter_lines())
    until(lambda: not any(patch["users"] for patch in state(server.url)["slots"]["patches"]))


def test_a_followed_file_that_changes_fills_a_slot_and_moves_the_default(server: Server, wanted: Path) -> None:
    put(server, patches=[])
    wanted.write_text(json.dumps(THIRD))
    third = Patch.from_data(THIRD).id
    told = until(lambda: state(server.url), lambda told: told["active"] == third)
    assert told["slots"]["default"] == {"third": 1.0}
    assert (told["tensors"], told["desired"]["id"]) == (0, third), "no weight was written"
    assert [patch["name"] for patch in told["slots"]["patches"] if not patch["leaving"]] == ["first", "second", "third"]
    assert f'vllm_surgery_slots{{model_name="{MODEL}",state="used"}} 3.0' in httpx.get(f"{server.url}/metrics").text
    put(server, patches=[])


def test_fills_in_a_row_take_no_more_than_there_is(server: Server) -> None:
    answers = []
    with httpx.Client(base_url=server.url, timeout=None) as client:
        for number in range(100):
            patch = patch_of({(0, 1): 2.0 + number}, f"p{number}")
            answers.append(client.put("/v1/surgery", json={"fill": [patch]}).status_code)
        names = [model["id"] for model in client.get("/v1/models").json()["data"]]
    filled = [f"p{number}" for number in range(SLOTS - 2)]
    assert answers == [200] * len(filled) + [409] * (100 - len(filled))
    assert names == [MODEL, *(f"{MODEL}@{name}" for name in ("none", "first", *filled, "second"))]
    put(server, free=filled)


def test_swaps_in_a_row_have_a_bounded_set_of_names_and_labels(server: Server) -> None:
    for number in range(100):
        put(server, patches=[patch_of({(0, 1): 3.0 + number}, f"q{number}")])
    slots = state(server.url)["slots"]["patches"]
    assert len(slots) <= SLOTS
    assert [patch["name"] for patch in slots if not patch["leaving"]] == ["first", "second", "q99"]
    lines = [line for line in httpx.get(f"{server.url}/metrics").text.splitlines() if 'patch="' in line]
    assert len({line.split('patch="')[1].split('"')[0] for line in lines}) <= 64
