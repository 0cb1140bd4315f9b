# SPDX-License-Identifier: Apache-2.0
"""The ledgers of the two kinds of engine that vLLM has, as a `SlotLeader` sees them."""

from __future__ import annotations

from typing import Any

from vllm_surgery.engine.patience import most_seconds, while_it_lives
from vllm_surgery.engine.requests.core import LEDGER_METHOD


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
            return [await self._answer(core.call_utility_async(LEDGER_METHOD, step, token, payload))]
        return list(await self._answer(core.call_utility_all_async(LEDGER_METHOD, step, token, payload)))

    async def _answer(self, call: Any) -> Any:
        return await while_it_lives(self._client, call, most_seconds())


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
