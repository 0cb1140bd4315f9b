# SPDX-License-Identifier: Apache-2.0
"""Three servers under load are swapped as one; and when one is killed in the middle, the others are in one state."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.engine.prompting import Lists
from tests.engine.server import SMALL, Server, running_server
from tests.engine.streams import MODEL, Streams, ask, body
from tests.engine.test_canary import RULE
from tests.waiting import until
from vllm_surgery.cli import main

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.localization.planted import Planted

pytestmark = pytest.mark.engine

SERVERS, LONG = 3, 900
PROMPT = [1, 19, 20]
OPTIONS = (
    "--served-model-name",
    MODEL,
    "--dtype",
    "float32",
    "--max-model-len",
    "1024",
    *SMALL,
)
LONGER = ("--hf-overrides", '{"max_position_embeddings": 1024}')


@contextmanager
def three_servers(planted: Planted, folders: pytest.TempPathFactory, *options: str) -> Iterator[list[Server]]:
    """Servers of a planted model, with more options."""

    def start(_: int) -> Server:
        arguments = (str(planted.folder), *options, *OPTIONS, *LONGER)
        return stack.enter_context(running_server(folders.mktemp("server"), *arguments))

    with ExitStack() as stack, ThreadPoolExecutor(SERVERS) as threads:
        yield list(threads.map(start, range(SERVERS)))


@pytest.fixture(scope="module")
def servers(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    """Three of them; the last one is killed in the last test."""
    with three_servers(planted, tmp_path_factory) as running:
        yield running


def of(servers: list[Server]) -> list[str]:
    return [word for server in servers for word in ("--url", server.url)]


def states(servers: list[Server]) -> list[dict[str, Any]]:
    return [httpx.get(f"{server.url}/v1/surgery", timeout=None).json() for server in servers]


def answers(servers: list[Server]) -> set[str]:
    return {str(ask(server.url, PROMPT, 60)["token_ids"]) for server in servers}


def long_answer(server: Server, begun: threading.Event) -> None:
    """Asks for an answer that a swap has to wait for, until the server is gone."""
    with (
        suppress(httpx.TransportError),
        httpx.stream(
            "POST", f"{server.url}/v1/completions", json=body(PROMPT, LONG, stream=True), timeout=None
        ) as response,
    ):
        for _ in response.iter_lines():
            begun.set()


def test_all_are_swapped_under_load(
    servers: list[Server], patches: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = answers(servers)
    with ExitStack() as stack:
        streams = [stack.enter_context(Streams(server.url, 2, 200, vocabulary=200)) for server in servers]
        for stream in streams:
            until(lambda stream=stream: len(stream.done), lambda begun: begun >= 3)  # type: ignore[misc]
        assert main(["swap", patches["cure"], *of(servers)]) == 0
    assert [stream.error for one in streams for stream in one.done if stream.error] == []
    told = states(servers)
    assert {state["active"].partition("@")[0] for state in told} == {"cure"}
    assert {state["epoch"] for state in told} == {1}
    after = answers(servers)
    assert (len(before), len(after)) == (1, 1)
    assert before != after
    assert main(["status", *of(servers)]) == 0
    assert capsys.readouterr().out.endswith("3 servers serve the same\n")


def test_what_one_model_refuses_no_server_gets(servers: list[Server], tmp_path: Path) -> None:
    before, wrong = states(servers), tmp_path / "wrong.json"
    wrong.write_text('{"version": 1, "name": "wrong", "edits": [{"op": "zero", "neurons": {"99": [1]}}]}')
    assert main(["swap", str(wrong), *of(servers)]) == 1
    assert states(servers) == before


def test_a_rehearsal_leaves_all_as_they_are(servers: list[Server], patches: dict[str, str]) -> None:
    before = answers(servers)
    assert main(["swap", "none", "--check", *of(servers)]) == 0
    assert answers(servers) == before
    assert {state["epoch"] for state in states(servers)} == {1}


def test_one_takes_its_last_swap_back(servers: list[Server], patches: dict[str, str]) -> None:
    one = servers[:1]
    cured = answers(one)
    assert main(["swap", patches["decoy"], "--url", one[0].url]) == 0
    assert answers(one) != cured
    assert main(["swap", "--undo", "--if-epoch", "2", "--url", one[0].url]) == 0
    assert answers(one) == cured
    assert states(one)[0]["active"].startswith("cure@")


def test_a_canary_on_weights_is_taken_back_and_another_is_promoted(
    servers: list[Server], patches: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    two = servers[:2]
    with Lists([server.url for server in two], MODEL) as lists:
        assert main(["canary", patches["decoy"], *RULE, "--share", "0.5", *of(two)]) == 1
        told = capsys.readouterr().out
        assert {state["active"].partition("@")[0] for state in states(two)} == {"cure"}, told
        assert main(["swap", "none", *of(two)]) == 0
        assert main(["canary", patches["cure"], *RULE, "--share", "0.5", *of(two)]) == 0, capsys.readouterr()
    assert lists.errors == []
    assert {state["active"].partition("@")[0] for state in states(two)} == {"cure"}


def test_when_one_is_killed_in_the_middle_the_others_are_in_one_state(
    servers: list[Server], patches: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    *others, doomed = servers
    before = answers(others)
    codes: list[int] = []

    def swap() -> None:
        # The last one waits for its requests to end, and the others have none.
        codes.append(main(["swap", "none", "--mode", "wait", *of(servers)]))

    begun = threading.Event()
    answering = threading.Thread(target=long_answer, args=(doomed, begun))
    answering.start()
    begun.wait()
    swapping = threading.Thread(target=swap)
    swapping.start()
    until(lambda: {state["active"] for state in states(others)} == {"none"}, every=0.01)
    os.killpg(doomed.process.pid, signal.SIGKILL)
    doomed.process.wait()
    swapping.join()
    answering.join()
    assert codes == [1]
    out, err = capsys.readouterr()
    fates = [line.split(maxsplit=1)[1] for line in out.splitlines()]
    assert [fate.partition(";")[0] for fate in fates] == ["taken back", "taken back", "gone"]
    assert "2 of 3 servers serve what they served before" in err
    assert {state["active"].partition("@")[0] for state in states(others)} == {"cure"}
    assert answers(others) == before
