# SPDX-License-Identifier: Apache-2.0
"""2,500 bodies and names against one server: each is served or refused in its words, and the server is what it was."""

from __future__ import annotations

import asyncio
import json
import random
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from tests.engine.http.test_endpoint import PATCHES, STATE, A, FakeSwapper, Server
from tests.hostile.generated import WORDS, body, mutated
from vllm_surgery.client.protocol import SwapReport
from vllm_surgery.engine.metrics import Metrics
from vllm_surgery.engine.swap.metrics import InstrumentedSwapper

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import httpx

BATCHES, BODIES, NAMES = 10, 150, 100
SECRET = "s3cr3t"
REFUSED = {400, 403, 413, 422, 501}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 4}))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "patches"
    made.mkdir()
    (made / "a.yaml").write_text(json.dumps(A))
    (tmp_path / "outside.yaml").write_text(f"version: {SECRET}")
    (made / "b.yaml").symlink_to(tmp_path / "outside.yaml")
    return made


class Under:
    """One server that is attacked, with metrics of its own."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.registry, self.swapper = CollectorRegistry(), FakeSwapper()
        self.server = Server(model, self.swapper, {"patch_dirs": [str(folder)]})
        self.metrics = Metrics(self.registry, removable=True)

    async def put(self, bodies: Sequence[bytes]) -> list[httpx.Response]:
        """Answers to bodies, one after the other."""
        async with self.server.started() as client:
            service = self.server.app.state.vllm_surgery_service
            service.swapper = InstrumentedSwapper(self.swapper, self.metrics, "model")
            headers = {"content-type": "application/json"}
            answers = [await client.put(STATE, content=content, headers=headers) for content in bodies]
            assert (await client.get(STATE)).status_code == 200
            assert (await client.get(PATCHES)).status_code == 200
        return answers


def check(answer: httpx.Response, hidden: str) -> None:
    """An answer is a report, or a refusal of one printable line that quotes no file and says no folder."""
    content: dict[str, Any] = answer.json()
    if answer.status_code == 200:
        SwapReport.model_validate(content)
        return
    assert answer.status_code in REFUSED, content
    assert content["error"]["code"] == answer.status_code
    message = content["error"]["message"]
    assert message.isprintable()
    assert len(message) < 2000
    assert SECRET not in message
    assert hidden not in message


@pytest.mark.parametrize("seed", range(BATCHES))
def test_bodies(model: Path, folder: Path, seed: int, tmp_path: Path) -> None:
    chance, under = random.Random(seed), Under(model, folder)
    answers = asyncio.run(under.put([body(chance) for _ in range(BODIES)]))
    for answer in answers:
        check(answer, str(tmp_path))
    done = [answer for answer in answers if answer.status_code == 200]
    assert len(under.swapper.calls) == len(done), "what is refused reaches no engine"
    assert 0 < len(done) < BODIES, "the generator makes sound ones and others"
    assert len(generate_latest(under.registry)) < 100_000


@pytest.mark.parametrize("seed", range(BATCHES))
def test_names(model: Path, folder: Path, seed: int, tmp_path: Path) -> None:
    chance, under = random.Random(seed), Under(model, folder)
    spoiled = ["a", "b", "../outside", str(tmp_path / "outside"), *WORDS]
    names = [mutated(chance.choice(spoiled).encode("utf-8", "replace"), chance).decode("latin-1") for _ in range(NAMES)]
    answers = asyncio.run(under.put([json.dumps({"patches": [name]}).encode() for name in names]))
    for name, answer in zip(names, answers, strict=True):
        check(answer, "outside.yaml")
        assert (answer.status_code == 200) == (name == "a")
        assert SECRET not in answer.text
