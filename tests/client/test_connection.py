# SPDX-License-Identifier: Apache-2.0
"""Answers without an end are not read to it, by clients of either kind."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.client.test_client import FakeServer
from tests.examples import refusal
from vllm_surgery.client.connection import Connection
from vllm_surgery.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setattr("vllm_surgery.client.connection.MOST_BYTES", 1 << 20)
    made = FakeServer()
    made.answers = {"/fits": (200, "x" * (1 << 20)), "/endless": (200, "x" * (1 << 21))}
    yield made
    made.stop()


def test_a_client_reads_no_more_than_answers_have(server: FakeServer) -> None:
    hooks = {"response": [Connection(server.url).bound]}
    with httpx.Client(base_url=server.url, event_hooks=hooks) as client:
        assert len(client.get("/fits").content) == 1 << 20
        said = refusal(lambda: client.get("/endless"), UsageError)
    assert said == f"{server.url}: answers with more than 1 MiB, as no server does"


def test_an_asynchronous_one_neither(server: FakeServer) -> None:
    async def ask(path: str) -> int:
        hooks = {"response": [Connection(server.url).bound_async]}
        async with httpx.AsyncClient(base_url=server.url, event_hooks=hooks) as client:
            return len((await client.get(path)).content)

    assert asyncio.run(ask("/fits")) == 1 << 20
    refusal(lambda: asyncio.run(ask("/endless")), UsageError)
