# SPDX-License-Identifier: Apache-2.0
"""Adapters of vLLM's two kinds of engine to `vllm_surgery.engine.swap.transaction.Engine`."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, TypeVar

from vllm_surgery.engine.patience import most_seconds, while_it_lives
from vllm_surgery.engine.swap.worker import REPORT_METHOD, STEP_METHOD
from vllm_surgery.engine.weight_version import note_version, version_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from vllm_surgery.client.protocol import SwapMode

BEAT_SECONDS = 30.0
"""Between two signs of life to the workers while a swap waits for requests to end."""

Result = TypeVar("Result")
Answers = list[tuple[str, dict[str, Any]]]


class ServedEngine:
    """Adapter of the engine behind a server: all engines of it, with internal data parallelism."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def reports(self) -> Answers:
        """Name and state of every rank."""
        return await self._call(REPORT_METHOD, (), {})

    async def begin(self, token: str, payload: dict[str, Any]) -> tuple[Answers, bool]:
        """Begins a swap; see `vllm_surgery.engine.swap.transaction.Engine`. Both questions are sent at once."""
        answers, sleeps = await asyncio.gather(
            self.step("begin", token, payload), while_it_lives(self._client, self._client.is_sleeping())
        )
        return answers, bool(sleeps)

    async def step(self, name: str, token: str, payload: dict[str, Any]) -> Answers:
        """Name of every rank and its answer to a step."""
        return await self._call(STEP_METHOD, (name, token), payload)

    async def insist(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Carries `work` out to its end, whoever cancels the caller meanwhile; then the caller is cancelled."""
        task, cancelled = asyncio.ensure_future(work), False
        while not task.done():
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError:
                cancelled = True
        if cancelled:
            task.exception()  # Looked at: nobody else does.
            raise asyncio.CancelledError
        return task.result()

    async def meanwhile(
        self, work: Coroutine[Any, Any, Result], beat: Callable[[], Coroutine[Any, Any, None]]
    ) -> Result:
        """Result of `work`; calls `beat` every `BEAT_SECONDS` until it is there."""
        task = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait({task}, timeout=BEAT_SECONDS))[0]:
                await beat()
            return task.result()
        finally:
            task.cancel()

    async def pause(self, mode: SwapMode) -> None:
        """Holds all tokens and clears the caches; see `vllm_surgery.engine.swap.transaction.Engine`.

        What `AsyncLLM.pause_generation` does but for its last line, 20 ms of sleep, so that callers see the last tokens
        before the pause. Here they may come later: each says itself which weights it is from.
        """
        await self._client.renderer.clear_mm_cache_async()
        await while_it_lives(self._client, self._client.engine_core.pause_scheduler_async(mode=mode, clear_cache=True))

    async def resume(self) -> None:
        """Undoes `pause`."""
        await while_it_lives(self._client, self._client.resume_generation())

    async def set_version(self, patch_id: str) -> None:
        """Makes every output carry this id from now on."""
        await while_it_lives(self._client, self._client.update_weight_version(version_of(patch_id)))
        note_version(version_of(patch_id))

    async def wait(self, seconds: float) -> None:
        """Lets the event loop do other work."""
        await asyncio.sleep(seconds)

    async def _call(self, method: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Answers:
        core = self._client.engine_core
        if hasattr(core, "call_utility_all_async"):
            # vLLM's own `collective_rpc` gives the first engine's answers alone.
            call = core.call_utility_all_async("collective_rpc", method, None, arguments, options)
            return named(await while_it_lives(self._client, call, most_seconds()))
        # An older vLLM. `why_not` has seen to it that there is one engine.
        call = core.collective_rpc_async(method, None, arguments, options)
        return named([await while_it_lives(self._client, call, most_seconds())])


class OfflineEngine:
    """Adapter of the engine in a `vllm.LLM`, between two calls of its `generate`. Its coroutines never suspend."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm

    async def reports(self) -> Answers:
        """Name and state of every rank."""
        return named([self._llm.collective_rpc(REPORT_METHOD)])

    async def begin(self, token: str, payload: dict[str, Any]) -> tuple[Answers, bool]:
        """Begins a swap; see `vllm_surgery.engine.swap.transaction.Engine`."""
        return await self.step("begin", token, payload), bool(self._llm.llm_engine.is_sleeping())

    async def step(self, name: str, token: str, payload: dict[str, Any]) -> Answers:
        """Name of every rank and its answer to a step."""
        return named([self._llm.collective_rpc(STEP_METHOD, args=(name, token), kwargs=payload)])

    async def insist(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Result of `work`. Nothing here can be cancelled; a second interrupt ends it."""
        return await work

    async def meanwhile(
        self, work: Coroutine[Any, Any, Result], beat: Callable[[], Coroutine[Any, Any, None]]
    ) -> Result:
        """Result of `work`, for which nothing has to wait."""
        del beat
        return await work

    async def pause(self, mode: SwapMode) -> None:
        """Clears the caches: no request runs, so there is nothing to hold."""
        self._llm.llm_engine.reset_prefix_cache(reset_running_requests=True, reset_connector=True)
        self._llm.llm_engine.reset_mm_cache()
        self._llm.llm_engine.reset_encoder_cache()

    async def resume(self) -> None:
        """Does nothing: nothing was held."""

    async def set_version(self, patch_id: str) -> None:
        """Makes every output carry this id from now on."""
        self._llm.llm_engine.set_weight_version(version_of(patch_id))
        note_version(version_of(patch_id))

    async def wait(self, seconds: float) -> None:
        """Waits."""
        time.sleep(seconds)


def named(engines: Sequence[Sequence[dict[str, Any]]]) -> Answers:
    """Answers of all ranks of all engines, each with the rank's name for people."""
    prefix = "engine {engine}, rank {rank}" if len(engines) > 1 else "rank {rank}"
    return [
        (prefix.format(engine=engine, rank=rank), answer)
        for engine, answers in enumerate(engines)
        for rank, answer in enumerate(answers)
    ]


def run_sync(work: Coroutine[Any, Any, Result]) -> Result:
    """Runs a coroutine that never suspends, as with `OfflineEngine`, and returns its result. Needs no event loop.

    It works inside a running loop too, such as a notebook's, where `asyncio.run` is refused.
    """
    try:
        work.send(None)
    except StopIteration as done:
        result: Result = done.value
        return result
    work.close()
    raise RuntimeError("the coroutine waited for something")
