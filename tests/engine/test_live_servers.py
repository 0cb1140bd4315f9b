# SPDX-License-Identifier: Apache-2.0
"""Several API servers in front of one engine, and several engines behind one server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

from tests.engine.counted import counts_of, expected, settled, total
from tests.engine.server import SMALL, Server, running_server
from tests.engine.streams import MODEL, ask
from tests.engine.test_live import OPTIONS, PROMPT, SETS, put, state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.engine

TRIES = 24
"""Connections are spread over servers by the kernel, and requests over engines by vLLM: with so many, each is met."""


@pytest.fixture(scope="module")
def two_servers(tmp_path_factory: pytest.TempPathFactory, family_model: Callable[[str], Path]) -> Iterator[Server]:
    # Room for answers that are long enough to loop.
    longer = ("--max-model-len", "512", "--hf-overrides", '{"max_position_embeddings": 512}')
    options = ("--served-model-name", MODEL, "--skip-tokenizer-init", "--dtype", "float32", *longer, *SMALL)
    arguments = (str(family_model("Llama")), *options, "--api-server-count", "2")
    with running_server(tmp_path_factory.mktemp("two"), *arguments, VLLM_ENABLE_V1_MULTIPROCESSING="1") as server:
        yield server


def test_the_metrics_of_two_servers_add_up_on_the_page_of_either(
    two_servers: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, answers = two_servers.url, []
    for number in range(TRIES):
        # A random model doesn't loop by itself. One that may say a single word does.
        tokens, only = (400, {"allowed_token_ids": [number]}) if number % 3 == 0 else (12, {})
        choice = ask(url, [*PROMPT, number + 3], tokens, **only)
        answers.append((choice["token_ids"], choice["finish_reason"]))
    wanted = expected(answers, "none", tmp_path, capsys, tokenizer=None)
    assert total(wanted, "loops_total") == TRIES // 3
    assert settled(url, TRIES) == wanted
    assert [counts_of(url) for _ in range(8)] == [wanted] * 8


def test_a_swap_through_either_of_two_servers_is_seen_by_both(two_servers: Server) -> None:
    server = two_servers
    seen = set()
    for number in range(TRIES):
        name = ("first", "second", "none")[number % 3]
        report = put(server.url, SETS[name])
        assert report.status_code == 200, report.text
        told = [state(server.url) for _ in range(4)]
        assert {(each["active"], each["epoch"]) for each in told} == {(report.json()["id"], number + 1)}
        seen.add((name, str(ask(server.url, PROMPT)["token_ids"])))
    assert len(seen) == 3, "each set has one answer, whichever server is asked"


def test_every_engine_of_a_data_parallel_server_is_swapped(tmp_path: Path, family_model: Callable[[str], Path]) -> None:
    arguments = (str(family_model("Llama")), *OPTIONS, *SMALL, "--data-parallel-size", "2", "--api-server-count", "1")
    with running_server(tmp_path, *arguments, VLLM_ENABLE_V1_MULTIPROCESSING="1") as server:
        before = {str(ask(server.url, PROMPT)["token_ids"]) for _ in range(TRIES)}
        report = put(server.url, SETS["second"])
        assert report.status_code == 200, report.text
        assert state(server.url)["ranks"] == 2
        after = {str(ask(server.url, PROMPT)["token_ids"]) for _ in range(TRIES)}
        assert (len(before), len(after)) == (1, 1)
        assert before != after
        metrics = httpx.get(f"{server.url}/metrics", timeout=None).text
        finished = [line for line in metrics.splitlines() if line.startswith("vllm:request_success_total{")]
        busy = {line.split('engine="')[1][0] for line in finished if not line.endswith(" 0.0")}
        assert busy == {"0", "1"}, "both engines must have answered, or this shows nothing"
