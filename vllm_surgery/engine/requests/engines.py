# SPDX-License-Identifier: Apache-2.0
"""The ledgers of the two kinds of engine that vLLM has, as a `SlotLeader` sees them."""

from __future__ import annotations

import asyncio
from typing import Any

from vllm_surgery.engine.requests.core import LEDGER_METHOD
from vllm_surgery.errors import EngineError

DEATH_CHECK_SECONDS = 0.5
"""Between two looks at whether the engine still lives, while it is asked something."""


class ServedLedgers:
    """Of the engines behind a server: all of them, with internal data parallelism.

    Args:
        client: vLLM's engine client.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    @property
    def alone(self) -> bool:
        """See `vllm_surgery.engine.requests.leader.Engines`."""
        return not hasattr(self._client.engine_core, "call_utility_all_async")

    async def ledger(self, step: str, token: str, payload: dict[str, Any]) -> list[dict[str, Any]]:
        """See `vllm_surgery.engine.requests.leader.Engines`."""
        core = self._client.engine_core
        if self.alone:
            return [await self._alive(core.call_utility_async(LEDGER_METHOD, step, token, payload))]
        return list(await self._alive(core.call_utility_all_async(LEDGER_METHOD, step, token, payload)))

    async def _alive(self, call: Any) -> Any:
        task = asyncio.ensure_future(call)
        try:
            while not (await asyncio.wait({task}, timeout=DEATH_CHECK_SECONDS))[0]:
                if self._client.errored:
                    raise EngineError("the engine died")
            return task.result()
        finally:
            task.cancel()


class OfflineLedgers:
    """Of the engine in a `vllm.LLM`.

    Args:
        llm: that isn't inside one of its calls.
    """

    alone = True

    def __init__(self, llm: Any) -> None:
        self._llm = llm

    async def ledger(self, step: str, token: str, payload: dict[str, Any]) -> list[dict[str, Any]]:
        """See `vllm_surgery.engine.requests.leader.Engines`. It never waits for anything else."""
        client = self._llm.llm_engine.engine_core
        if hasattr(client, "call_utility"):
            return [client.call_utility(LEDGER_METHOD, step, token, payload)]
        return [getattr(client.engine_core, LEDGER_METHOD)(step, token, payload)]
