# SPDX-License-Identifier: Apache-2.0
"""Several API servers in front of one engine, and several engines behind one server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

from tests.engine.server import SMALL, running_server
from tests.engine.streams import ask
from tests.engine.test_live import OPTIONS, PROMPT, SETS, put, state

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.engine

TRIES = 24
"""Connections are spread over servers by the kernel, and requests over engines by vLLM: with so many, each is met."""


def test_a_swap_through_either_of_two_servers_is_seen_by_both(
    tmp_path: Path, family_model: Callable[[str], Path]
) -> None:
    arguments = (str(family_model("Llama")), *OPTIONS, *SMALL, "--api-server-count", "2")
    with running_server(tmp_path, *arguments, VLLM_ENABLE_V1_MULTIPROCESSING="1") as server:
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
        metrics = httpx.get(f"{server.url}/metrics").text
        finished = [line for line in metrics.splitlines() if line.startswith("vllm:request_success_total{")]
        busy = {line.split('engine="')[1][0] for line in finished if not line.endswith(" 0.0")}
        assert busy == {"0", "1"}, "both engines must have answered, or this shows nothing"
