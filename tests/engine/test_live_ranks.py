# SPDX-License-Identifier: Apache-2.0
"""A server of two ranks, one of which fails in every step of a swap: it ends in the old state or the new one."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.engine.faults import Faults
from tests.engine.server import SMALL, Server, running_server
from tests.engine.streams import Stream, ask, chances
from tests.engine.test_live import OPTIONS, PROMPT, SETS, put, state
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.engine

FAILING = 1


@contextmanager
def two_ranks(folder: Path, model: Path) -> Iterator[tuple[Server, Faults]]:
    faults = Faults(folder)
    arguments = (str(model), *OPTIONS, *SMALL, "--tensor-parallel-size", "2")
    with running_server(folder, *arguments, VLLM_ENABLE_V1_MULTIPROCESSING="1", **faults.environment) as server:
        yield server, faults


@pytest.fixture(scope="module")
def ranks(
    tmp_path_factory: pytest.TempPathFactory, family_model: Callable[[str], Path]
) -> Iterator[tuple[Server, Faults]]:
    with two_ranks(tmp_path_factory.mktemp("ranks"), family_model("Llama")) as started:
        yield started


def told(url: str) -> Any:
    """What tells one set of weights from another, of few tokens: they cost much where two ranks wait for each other."""
    stream = Stream(PROMPT, ask(url, PROMPT, 4)["token_ids"])
    return stream.tokens, chances(url, stream)


@pytest.mark.parametrize("step", ["begin", "stage", "poll", "apply", "verify", "commit"])
def test_a_rank_that_fails_leaves_both_as_they_were(ranks: tuple[Server, Faults], step: str) -> None:
    (server, faults), url = ranks, ranks[0].url
    put(url, SETS["first"]).raise_for_status()
    before = told(url)
    if step == "poll":  # Patches this small are staged in the first step, but for a slow disk.
        faults.set("stage", "sleep", rank=FAILING, seconds=0.1)
    faults.set(step, "halfway" if step == "apply" else "raise", rank=FAILING)
    failed = put(url, SETS["second"])
    faults.clear()
    assert failed.status_code == 500, server.log[-3000:]
    assert f"rank {FAILING}: RuntimeError: a test made {step} fail" in failed.json()["error"]["message"]
    assert told(url) == before
    assert state(url)["active"].startswith("first@")
    assert put(url, SETS["second"]).status_code == 200
    assert told(url) != before


def _until_gone(server: Server) -> int | None:
    """What /health answers once it is bad; None where the server went away altogether."""
    return until(lambda: _health(server), lambda status: status != httpx.codes.OK)


def _health(server: Server) -> int | None:
    try:
        return httpx.get(f"{server.url}/health", timeout=None).status_code
    except httpx.TransportError:
        return None


def _expect_failure(server: Server, patches: list[Any]) -> None:
    try:
        failed = put(server.url, patches)
    except httpx.TransportError:
        return  # The server may be gone before it can say so.
    assert failed.status_code == 500
    assert "could not be undone, so the engine was stopped" in failed.json()["error"]["message"]


def _expect_no_more_answers(server: Server) -> None:
    _expect_failure(server, SETS["second"])
    assert _until_gone(server) in {None, 503}
    with pytest.raises((httpx.TransportError, AssertionError)):
        told(server.url)


def test_a_server_whose_swap_can_not_be_undone_answers_no_more(ranks: tuple[Server, Faults]) -> None:
    """The last that is asked of this server."""
    server, faults = ranks
    put(server.url, SETS["first"]).raise_for_status()
    faults.set("apply", "halfway", rank=FAILING)
    faults.set("restore", "raise", rank=FAILING)
    _expect_no_more_answers(server)


def test_a_server_that_lost_a_rank_in_a_swap_answers_no_more(
    tmp_path: Path, family_model: Callable[[str], Path]
) -> None:
    with two_ranks(tmp_path, family_model("Llama")) as (server, faults):
        put(server.url, SETS["first"]).raise_for_status()
        faults.set("apply", "kill", rank=FAILING)
        _expect_no_more_answers(server)
