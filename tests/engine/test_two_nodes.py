# SPDX-License-Identifier: Apache-2.0
"""A server whose workers are on two machines, played by two launches on this one: tensor and data parallelism."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.engine.server import SMALL, Server, free_port, kill, launch, running_server
from tests.engine.streams import ask
from tests.engine.test_live import FIRST, OPTIONS, PROMPT, SETS, put, state
from tests.waiting import until
from vllm_surgery import Patch

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.engine

STEP_SECONDS = 30
"""How long vLLM lets a step of the model take; a swap waits twice as long for workers that don't answer."""

TRIES = 12
"""vLLM spreads requests over engines: with so many, each is met."""

FIRST_ID = Patch.from_data(FIRST).id


@contextmanager
def two_nodes(folder: Path, *arguments: str, head: tuple[str, ...], other: tuple[str, ...]) -> Iterator[Any]:
    """The server, and the process of its second node."""
    more = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": str(STEP_SECONDS)}
    node = launch(folder / "node.log", *arguments, *other, "--headless", **more)
    try:
        with running_server(folder, *arguments, *head, **more) as server:
            yield server, node
    except BaseException as error:
        error.add_note(f"The other node's last words:\n{(folder / 'node.log').read_text()[-3000:]}")
        raise
    finally:
        kill(node)
        node.wait()


@contextmanager
def tensor_parallel(folder: Path, *arguments: str) -> Iterator[Any]:
    place = ("--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(free_port()))
    with two_nodes(
        folder, *arguments, *place, "--tensor-parallel-size", "2", head=(), other=("--node-rank", "1")
    ) as found:
        yield found


@contextmanager
def data_parallel(folder: Path, *arguments: str) -> Iterator[Any]:
    place = ("--data-parallel-address", "127.0.0.1", "--data-parallel-rpc-port", str(free_port()))
    sizes = ("--data-parallel-size", "2", "--data-parallel-size-local", "1")
    with two_nodes(
        folder,
        *arguments,
        *place,
        *sizes,
        head=("--api-server-count", "1"),
        other=("--data-parallel-start-rank", "1"),
    ) as found:
        yield found


@pytest.fixture(scope="module", params=[tensor_parallel, data_parallel], ids=["TP", "DP"])
def nodes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, family_model: Callable[[str], Path]
) -> Iterator[tuple[Server, subprocess.Popen[bytes]]]:
    folder = tmp_path_factory.mktemp("nodes")
    patch = folder / "first.json"
    patch.write_text(Patch.from_data(FIRST).to_json())
    with request.param(folder, str(family_model("Llama")), *OPTIONS, *SMALL, "--patch", str(patch)) as started:
        yield started


def answers(url: str) -> set[tuple[int, ...]]:
    return {tuple(ask(url, PROMPT)["token_ids"]) for _ in range(TRIES)}


FOUND: dict[str, tuple[int, ...]] = {}
"""The answer under each set of patches, whatever the layout."""


def test_both_nodes_have_the_patch_from_the_start_and_every_one_after_it(
    nodes: tuple[Server, subprocess.Popen[bytes]],
) -> None:
    url = nodes[0].url
    assert (state(url)["active"], state(url)["ranks"]) == (FIRST_ID, 2)
    for number, name in enumerate(("first", "second", "none", "first")):
        if number > 0:
            put(url, SETS[name]).raise_for_status()
        told = answers(url)
        assert len(told) == 1
        assert FOUND.setdefault(name, *told) == next(iter(told)), "the same by either layout"
    assert len(set(FOUND.values())) == 3, "the sets must differ, or this shows nothing"


def test_a_node_that_is_lost_ends_the_server_and_not_in_silence(
    nodes: tuple[Server, subprocess.Popen[bytes]],
) -> None:
    server, node = nodes
    kill(node)
    node.wait()
    failed = put(server.url, SETS["second"])
    assert failed.status_code == httpx.codes.INTERNAL_SERVER_ERROR
    message = failed.json()["error"]["message"]
    assert "not all workers answered within 60 s, so the engine was ended" in message or "engine died" in message
    until(lambda: server.process.poll() is not None)
