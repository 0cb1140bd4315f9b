# SPDX-License-Identifier: Apache-2.0
"""Writing the default into the weights, by the transaction of any swap, and taking it back out.

While weights hold a patch, its slot does nothing more: requests under it go on as they were, only cheaper. A request
without a patch isn't possible then, nor under another.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeVar

from vllm_surgery.engine.requests.ledger import LEASE_SECONDS
from vllm_surgery.engine.rpc_errors import error_of
from vllm_surgery.errors import ConflictError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from vllm_surgery.client.protocol import SwapMode
    from vllm_surgery.engine.requests.choice import Offered
    from vllm_surgery.engine.requests.leader import SlotLeader, SlotState
    from vllm_surgery.engine.swap.transaction import Engine

Result = TypeVar("Result")


class HoldingEngine:
    """The engine of a swap whose end changes what slots do: while requests stand still, on every rank or on none.

    Args:
        engine: whose weights are swapped.
        leader: of the same engine's slots.
        claim: to have them to itself, which is kept up while the swap waits.
        digest: of the patch that the weights hold afterwards; empty for none.
        before: that they hold now.
    """

    def __init__(self, engine: Engine, leader: SlotLeader, claim: str, digest: str, before: str) -> None:
        self._engine, self._leader, self._claim = engine, leader, claim
        self._renewed = time.monotonic()
        self._digest, self._before = digest, before

    async def reports(self) -> list[tuple[str, dict[str, Any]]]:
        """See `vllm_surgery.engine.swap.transaction.Engine`."""
        return await self._engine.reports()

    async def begin(self, token: str, payload: dict[str, Any]) -> tuple[list[tuple[str, dict[str, Any]]], bool]:
        """See `vllm_surgery.engine.swap.transaction.Engine`."""
        return await self._engine.begin(token, payload)

    async def step(self, name: str, token: str, payload: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        """See `vllm_surgery.engine.swap.transaction.Engine`. With the commit, slots heed what the weights hold."""
        if name == "poll" and time.monotonic() - self._renewed > LEASE_SECONDS / 4:
            await self._leader.renew(self._claim)
            self._renewed = time.monotonic()
        if name == "restore":
            await self._hold(self._before)
        answers = await self._engine.step(name, token, payload)
        if name == "commit" and all(answer["ok"] for _, answer in answers):
            await self._hold(self._digest)
        return answers

    async def insist(self, work: Coroutine[Any, Any, Result]) -> Result:
        """See `vllm_surgery.engine.swap.transaction.Engine`."""
        return await self._engine.insist(work)

    async def meanwhile(
        self, work: Coroutine[Any, Any, Result], beat: Callable[[], Coroutine[Any, Any, None]]
    ) -> Result:
        """See `vllm_surgery.engine.swap.transaction.Engine`."""
        return await self._engine.meanwhile(work, beat)

    async def pause(self, mode: SwapMode) -> None:
        """See `vllm_surgery.engine.swap.transaction.Engine`."""
        await self._engine.pause(mode)

    async def resume(self) -> None:
        """See `vllm_surgery.engine.swap.transaction.Engine`."""
        await self._engine.resume()

    async def set_version(self, patch_id: str) -> None:
        """See `vllm_surgery.engine.swap.transaction.Engine`."""
        await self._engine.set_version(patch_id)

    async def wait(self, seconds: float) -> None:
        """See `vllm_surgery.engine.swap.transaction.Engine`."""
        await self._engine.wait(seconds)

    async def _hold(self, digest: str) -> None:
        for number, answer in enumerate(await self._leader.engines.ledger("hold", "", {"digest": digest})):
            if not answer["ok"]:
                raise error_of(answer, f"engine {number}")


def check_alone(state: SlotState) -> Offered:
    """The default, if it is all that requests can choose beside the unpatched model.

    Raises:
        UsageError: there is no one patch to promote.
        ConflictError: weights would change under other patches.
    """
    default = state.offer.only_default
    if default is None or not default.digest:
        which = "the default is drawn" if default is None else "the default is no patch"
        raise UsageError(f"promote: {which}; make one patch the default first")
    others = sorted(set(state.offer.patches) - {default.name})
    if others:
        raise ConflictError(f"promote: the weights would change under other patches; free {', '.join(others)} first")
    return default


def check_nobody_else(state: SlotState, default: Offered) -> None:
    """Sees that every request that runs or waits has the default.

    Raises:
        ConflictError: one hasn't.
    """
    others = state.unpatched + sum(slot["users"] for slot in state.slots if slot["digest"] != default.digest)
    if others:
        raise ConflictError(f"promote: {others} request(s) run or wait without {default.id}; try again when they ended")
