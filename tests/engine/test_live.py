# SPDX-License-Identifier: Apache-2.0
"""Swaps on a running server, under traffic."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.engine.faults import Faults
from tests.engine.server import SMALL, Server, running_server
from tests.engine.streams import MODEL, TIE, Stream, Streams, ask, body, chances
from tests.engine.test_load import GAINS
from tests.models import patch_of
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.engine

FIRST = patch_of(GAINS, "first")
SECOND = patch_of({(0, 0): 2.0, (3, 9): -1.0, (7, 100): 8.0}, "second")
SETS: dict[str, list[Any]] = {"none": [], "first": [FIRST], "second": [SECOND]}
OPTIONS = ("--served-model-name", MODEL, "--skip-tokenizer-init", "--max-model-len", "256", "--dtype", "float32")
PROMPT = [5, 17, 33, 90]


def put(url: str, patches: list[Any], **more: Any) -> httpx.Response:
    return httpx.put(f"{url}/v1/surgery", json={"patches": patches, **more}, timeout=None)


def state(url: str) -> dict[str, Any]:
    told: dict[str, Any] = httpx.get(f"{url}/v1/surgery", timeout=None).raise_for_status().json()
    return told


def answers(url: str) -> list[Any]:
    """What tells one set of weights from another: tokens and log-probabilities, one prompt at a time."""
    streams = [Stream(prompt, ask(url, prompt)["token_ids"]) for prompt in (PROMPT, [200, 41, 7])]
    return [(stream.tokens, chances(url, stream)) for stream in streams]


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Faults:
    return Faults(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, family_model: Callable[[str], Path], faults: Faults
) -> Iterator[Server]:
    arguments = (str(family_model("Llama")), *OPTIONS, *SMALL, "--max-num-batched-tokens", "256")
    with running_server(tmp_path_factory.mktemp("live"), *arguments, **faults.environment) as running:
        yield running


@pytest.fixture
def url(server: Server, faults: Faults) -> Iterator[str]:
    """A server without patches, and without faults."""
    put(server.url, []).raise_for_status()
    yield server.url
    faults.clear()


def test_streams_go_on_through_a_hundred_swaps(url: str) -> None:
    order = ["none"]
    with Streams(url, number=16, tokens=160) as streams:
        until(lambda: streams.flowing)
        for number in range(100):
            name = list(SETS)[(number + 1) % len(SETS)]
            report = put(url, SETS[name])
            assert report.status_code == 200, report.text
            order.append(name)
    assert not [stream.error for stream in streams.done if stream.error]
    assert {stream.finish for stream in streams.done} == {"length"}
    assert {len(stream.tokens) for stream in streams.done} == {160}
    _check_tokens(url, order, streams.done[:12])


def _check_tokens(url: str, order: list[str], streams: list[Stream]) -> None:
    """Every token is the most likely one under the weights of its time: sets in the order in which they were active."""
    likely: dict[str, list[list[bool]]] = {}
    for name, patches in SETS.items():
        put(url, patches).raise_for_status()
        likely[name] = [[best - own < TIE for own, best in chances(url, stream)] for stream in streams]
    telling = [
        len({likely[name][number][place] for name in SETS}) == 2
        for number, stream in enumerate(streams)
        for place in range(len(stream.tokens))
    ]
    assert sum(telling) > len(telling) / 2, "the sets must differ, or this shows nothing"
    for number, stream in enumerate(streams):
        at = 0
        for place in range(len(stream.tokens)):
            while at < len(order) and not likely[order[at]][number][place]:
                at += 1
            assert at < len(order), f"token {place} of stream {number} is from no set that was active then"


def test_a_prompt_that_is_cached_gets_the_new_answer(url: str) -> None:
    prompt = list(range(10, 140))
    fresh = {}
    for name in ("first", "second"):
        put(url, SETS[name]).raise_for_status()
        fresh[name] = [ask(url, prompt)["token_ids"] for _ in range(2)]
    assert fresh["first"][0] == fresh["first"][1] != fresh["second"][0] == fresh["second"][1]
    put(url, SETS["first"]).raise_for_status()
    assert ask(url, prompt)["token_ids"] == fresh["first"][0]


def test_a_swap_during_prefill_gives_tokens_of_one_set_and_then_of_the_other(url: str) -> None:
    streams = []
    for number in range(6):
        put(url, SETS["first"]).raise_for_status()
        stream = Stream(list(range(10 + number, 210 + number)))
        streams.append(stream)
        asking = threading.Thread(target=lambda stream=stream: stream.tokens.extend(_tokens(url, stream.prompt)))
        asking.start()
        put(url, SETS["second"]).raise_for_status()
        asking.join()
    _check_tokens(url, ["first", "second"], streams)


def _tokens(url: str, prompt: list[int]) -> list[int]:
    tokens: list[int] = ask(url, prompt, 24)["token_ids"]
    return tokens


def test_state_tells_what_is_active(url: str) -> None:
    before = state(url)
    report = put(url, SETS["first"]).json()
    told = state(url)
    assert (told["active"], told["epoch"]) == (report["id"], before["epoch"] + 1)
    assert (told["units"], told["tensors"], told["ranks"]) == (len(GAINS), 4, 1)
    assert told["can_swap"] is True


def test_a_stale_epoch_changes_nothing(url: str) -> None:
    epoch = state(url)["epoch"]
    assert put(url, SETS["first"], if_epoch=epoch).status_code == 200
    refused = put(url, SETS["second"], if_epoch=epoch)
    assert refused.status_code == 409
    assert refused.json()["error"]["message"] == (
        f"the epoch is {epoch + 1}, not {epoch}: patches were swapped in between"
    )
    assert state(url)["active"].startswith("first@")


def test_a_patch_that_is_not_for_this_model_changes_nothing(url: str) -> None:
    before = answers(url)
    refused = put(url, [patch_of({(99, 0): -1.0}, "stranger")])
    assert refused.status_code == 422
    assert "layer 99 is out of range: the model has 12 layers" in refused.json()["error"]["message"]
    assert answers(url) == before


@pytest.mark.parametrize("mode", ["wait", "abort"])
def test_running_requests_are_waited_for_or_ended(url: str, mode: str) -> None:
    with Streams(url, number=4, tokens=200) as streams:
        until(lambda: streams.flowing)
        assert put(url, SETS["first"], mode=mode).status_code == 200
    assert not [stream.error for stream in streams.done if stream.error]
    finishes = {stream.finish for stream in streams.done}
    # Where vLLM before 0.32 aborts a request that has no token yet, its stream just ends.
    expected = {"length"} if mode == "wait" else {"length", "abort"}
    assert finishes - {None} == expected
    assert mode == "abort" or None not in finishes


def test_two_swaps_at_once_go_one_at_a_time(url: str, faults: Faults) -> None:
    faults.set("stage", "hold", rank=0)  # In a thread of its own: the rank hears the second one meanwhile.
    replies: list[httpx.Response] = []
    first = threading.Thread(target=lambda: replies.append(put(url, SETS["first"])))
    first.start()
    until(lambda: faults.holds("stage"))
    second = put(url, SETS["second"])
    faults.clear()
    first.join()
    assert (replies[0].status_code, second.status_code) == (200, 409)
    assert second.json()["error"]["message"] == "another swap is running"
    assert state(url)["active"].startswith("first@")


def test_a_client_that_goes_away_leaves_a_whole_swap(url: str, faults: Faults) -> None:
    put(url, SETS["second"]).raise_for_status()
    second = answers(url)
    put(url, []).raise_for_status()
    epoch = state(url)["epoch"]
    faults.set("apply", "hold", rank=0)
    with _putting(url, httpx.Request("PUT", url, json={"patches": [SECOND]}).content):
        until(lambda: faults.holds("apply"))
    faults.clear()
    until(lambda: state(url)["epoch"] != epoch)
    assert state(url)["active"].startswith("second@")
    assert answers(url) == second


@contextmanager
def _putting(url: str, content: bytes) -> Iterator[None]:
    """A request whose client hangs up at the end of the block."""
    place = urlsplit(url)
    with socket.create_connection((place.hostname, place.port)) as connection:
        connection.sendall(
            b"PUT /v1/surgery HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            + f"Content-Length: {len(content)}\r\n\r\n".encode()
            + content
        )
        yield


@pytest.mark.parametrize("step", ["begin", "stage", "apply", "verify"])
def test_a_step_that_fails_leaves_the_old_answers(url: str, faults: Faults, step: str) -> None:
    put(url, SETS["first"]).raise_for_status()
    before = answers(url)
    faults.set(step, "halfway" if step == "apply" else "raise", rank=0)
    with Streams(url, number=4, tokens=100) as streams:
        failed = put(url, SETS["second"])
    assert failed.status_code == 500
    assert f"rank 0: RuntimeError: a test made {step} fail" in failed.json()["error"]["message"]
    assert not [stream.error for stream in streams.done if stream.error]
    assert answers(url) == before
    assert state(url)["active"].startswith("first@")
    faults.clear()
    assert put(url, SETS["second"]).status_code == 200, "the server must be able to go on"


def named(response: httpx.Response) -> str | None:
    value: str | None = response.headers.get("x-surgery-patch")
    return value


@pytest.mark.parametrize("stream", [False, True])
def test_answers_name_the_patch_in_the_weights(url: str, stream: bool) -> None:
    seen = []
    for name in ("first", "second", "none"):
        put(url, SETS[name]).raise_for_status()
        response = httpx.post(f"{url}/v1/completions", json=body(PROMPT, 4, stream=stream), timeout=None)
        seen.append((named(response), state(url)["active"]))
    assert [patch for patch, _ in seen] == [active for _, active in seen]
    assert seen[-1][0] == "none"
    assert named(httpx.get(f"{url}/v1/models", timeout=None)) is None


@pytest.fixture
def tells_versions() -> None:
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    if "return_weight_versions" not in CompletionRequest.model_fields:
        pytest.skip("vLLM has return_weight_versions from 0.33 on")


@pytest.mark.usefixtures("tells_versions")
def test_the_patch_of_each_span_of_tokens_is_in_vllms_own_answer(url: str) -> None:
    put(url, SETS["first"]).raise_for_status()
    before = state(url)["active"]
    assert ask(url, PROMPT, 6, return_weight_versions=True)["weight_versions"] == [
        {"version": before, "start": 0, "end": 6}
    ]
    found: list[list[dict[str, Any]]] = []
    asking = threading.Thread(
        target=lambda: found.append(ask(url, PROMPT, 240, return_weight_versions=True)["weight_versions"])
    )
    with Streams(url, number=1, tokens=160) as streams:
        asking.start()
        until(lambda: streams.flowing)
        put(url, SETS["second"]).raise_for_status()
        asking.join()
    told = found[0]
    assert [told[0]["start"], told[-1]["end"]] == [0, 240]
    assert [span["end"] for span in told[:-1]] == [span["start"] for span in told[1:]]
    assert {span["version"] for span in told} <= {before, state(url)["active"]}
    assert told[-1]["version"] == state(url)["active"] or len(told) == 1
