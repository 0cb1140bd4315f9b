# SPDX-License-Identifier: Apache-2.0
"""How a server's engine is asked, and what happens when it dies while it is."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_surgery import EngineError
from vllm_surgery.engine import patience
from vllm_surgery.engine.swap import engines
from vllm_surgery.engine.swap.engines import ServedEngine


class Client:
    """vLLM's client of an engine."""

    def __init__(self, dead: bool = False) -> None:
        self.errored = dead
        self.hangs = self.ended = False
        self.versions: list[str] = []
        self.asked: list[str] = []
        self.engine_core = SimpleNamespace(call_utility_all_async=self._call, pause_scheduler_async=self._pause)
        self.renderer = SimpleNamespace(clear_mm_cache_async=self._clear)

    async def _call(self, utility: str, method: str, timeout: None, arguments: Any, options: Any) -> list[list[Any]]:
        if self.errored or self.hangs:
            await asyncio.Event().wait()
        self.asked.append(str(arguments[0]))
        return [[{"asked": [utility, method, *arguments], **options}]]

    async def _pause(self, mode: str, clear_cache: bool) -> None:
        self.asked.append(f"pause {mode}, {clear_cache}")

    async def _clear(self) -> None:
        self.asked.append("clear")

    def shutdown(self) -> None:
        self.errored = self.ended = True

    async def update_weight_version(self, version: str) -> None:
        self.versions.append(version)

    async def is_sleeping(self) -> bool:
        self.asked.append("sleeps?")
        if self.errored:
            raise RuntimeError("no such call")
        return True


def test_every_engine_is_asked() -> None:
    answers = asyncio.run(ServedEngine(Client()).step("apply", "token", {"more": 1}))
    asked = ["collective_rpc", "vllm_surgery_step", "apply", "token"]
    assert answers == [("rank 0", {"asked": asked, "more": 1})]


def test_an_older_vllm_is_asked_as_far_as_it_can_be() -> None:
    async def collective_rpc_async(*asked: Any) -> list[Any]:
        return [asked]

    client = SimpleNamespace(errored=False, engine_core=SimpleNamespace(collective_rpc_async=collective_rpc_async))
    answers = asyncio.run(ServedEngine(client).step("apply", "token", {"more": 1}))
    assert answers == [("rank 0", ("vllm_surgery_step", None, ("apply", "token"), {"more": 1}))]


def test_an_engine_that_dies_is_waited_for_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "DEATH_CHECK_SECONDS", 0.01)
    with pytest.raises(EngineError, match=r"^the engine died$"):
        asyncio.run(ServedEngine(Client(dead=True)).step("apply", "token", {}))


def test_an_engine_that_never_answers_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "DEATH_CHECK_SECONDS", 0.01)
    monkeypatch.setenv("VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS", "0.02")
    client = Client()
    client.hangs = True
    with pytest.raises(EngineError) as failed:
        asyncio.run(ServedEngine(client).step("apply", "token", {}))
    assert str(failed.value) == (
        "not all workers answered within 0 s, so the engine was ended; VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS is how long a "
        "step of theirs may take"
    )
    assert client.ended


def test_an_answer_may_take_as_long_as_two_steps_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS", raising=False)
    assert patience.most_seconds() == 600
    monkeypatch.setenv("VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS", "7")
    assert patience.most_seconds() == 14


def test_what_vllm_raises_comes_through() -> None:
    with pytest.raises(RuntimeError, match=r"^no such call$"):
        asyncio.run(ServedEngine(Client(dead=True)).begin("token", {}))


def test_whether_it_sleeps_is_asked_after_the_first_step() -> None:
    client = Client()
    answers, sleeps = asyncio.run(ServedEngine(client).begin("token", {"if_epoch": 0}))
    assert client.asked == ["begin", "sleeps?"]
    assert sleeps
    assert answers[0][1]["if_epoch"] == 0


def test_a_pause_clears_all_caches() -> None:
    client = Client()
    asyncio.run(ServedEngine(client).pause("keep"))
    assert client.asked == ["clear", "pause keep, True"]


def test_the_unpatched_model_has_the_version_that_vllm_gives_it() -> None:
    client = Client()
    asyncio.run(ServedEngine(client).set_version("none"))
    asyncio.run(ServedEngine(client).set_version("a@12345678"))
    assert client.versions == ["default", "a@12345678"]


def test_what_must_be_done_is_done_however_often_its_caller_is_cancelled() -> None:
    async def run() -> list[str]:
        done: list[str] = []
        begun, may_end = asyncio.Event(), asyncio.Event()

        async def work() -> None:
            begun.set()
            await may_end.wait()
            done.append("work")

        caller = asyncio.ensure_future(ServedEngine(Client()).insist(work()))
        await begun.wait()
        for _ in range(3):
            caller.cancel()
            await asyncio.sleep(0)
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await caller
        return done

    assert asyncio.run(run()) == ["work"]


def test_what_fails_fails_though_it_was_insisted_on() -> None:
    async def work() -> None:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        asyncio.run(ServedEngine(Client()).insist(work()))


def test_signs_of_life_are_given_while_something_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "BEAT_SECONDS", 0.001)

    async def run() -> str:
        enough = asyncio.Event()
        beats: list[int] = []

        async def beat() -> None:
            beats.append(1)
            if len(beats) == 3:
                enough.set()

        async def work() -> str:
            await enough.wait()
            return "done"

        return await ServedEngine(Client()).meanwhile(work(), beat)

    assert asyncio.run(run()) == "done"
