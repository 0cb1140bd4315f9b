# SPDX-License-Identifier: Apache-2.0
"""A soak: streams, random swaps and hostile bodies at one server for a while; afterwards it is what it was.

`make test` soaks for two minutes, `make soak` for an hour. Only how much is tried depends on the time, not what passes.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.engine.counted import settled, total
from tests.engine.server import SMALL, running_server
from tests.engine.streams import Streams
from tests.engine.test_live import OPTIONS, SETS, answers, put, state
from tests.hostile.generated import body
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.engine

SECONDS = float(os.environ.get("VLLM_SURGERY_SOAK_SECONDS", "120"))
NUMBER, TOKENS = 8, 64
HELD_BYTES = 64 << 20
"""How much more a server may hold in the second half than in the first: caches of Python and of the allocator settle in
the first. What leaks with each swap or body comes to far more in an hour."""


def resident(url: str) -> int:
    """Bytes of memory that a server's process holds."""
    port = url.rpartition(":")[2].encode()
    pages = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            pages += int((folder / "statm").read_text().split()[1]) if port in words else 0
        except OSError:  # It ended meanwhile.
            continue
    return pages * os.sysconf("SC_PAGE_SIZE")


def attack(url: str, chance: random.Random, seen: Counter[str]) -> None:
    """One swap, or one hostile body."""
    if chance.random() < 0.5:
        name = chance.choice(list(SETS))
        answer = put(url, SETS[name])
        assert answer.status_code == 200, answer.text
    else:
        headers = {"content-type": "application/json"}
        answer = httpx.put(f"{url}/v1/surgery", content=body(chance), headers=headers, timeout=None)
        assert answer.status_code in {200, 400, 409, 413, 422, 501}, answer.text
    seen["done" if answer.status_code == 200 else "refused"] += 1
    seen["swapped"] += answer.status_code == 200 and answer.json()["id"] != answer.json()["previous"]


def test_a_server_is_what_it_was(tmp_path: Path, family_model: Callable[[str], Path]) -> None:
    arguments = (str(family_model("Llama")), *OPTIONS, *SMALL, "--max-num-batched-tokens", "256")
    chance, seen, memory = random.Random(0), Counter[str](), list[int]()
    with running_server(tmp_path, *arguments) as server:
        before, asked = answers(server.url), total(settled(server.url, 1), "requests_total")
        with Streams(server.url, NUMBER, TOKENS) as streams:
            until(lambda: streams.flowing)
            ends = time.monotonic() + SECONDS
            while (left := ends - time.monotonic()) > 0:
                attack(server.url, chance, seen)
                if left < SECONDS / 2:
                    memory.append(resident(server.url))
        assert not [stream.error for stream in streams.done if stream.error]
        assert {len(stream.tokens) for stream in streams.done} == {TOKENS}
        put(server.url, []).raise_for_status()
        assert answers(server.url) == before
        assert min(seen["swapped"], seen["refused"]) > 0
        assert state(server.url)["epoch"] >= seen["swapped"]
        counted = settled(server.url, asked + len(streams.done))
        # The answers that `answers` asked for again are counted too: as many as the first time.
        assert total(counted, "requests_total") == 2 * asked + len(streams.done)
    first, second = memory[: len(memory) // 2], memory[len(memory) // 2 :]
    assert max(second) - max(first) < HELD_BYTES
