# SPDX-License-Identifier: Apache-2.0
"""Leading a change of the slots: the same on all engines of a server or on none. Requests go on meanwhile."""

from __future__ import annotations

import time
import uuid
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from vllm_surgery.engine import tracing
from vllm_surgery.engine.requests.choice import Offer
from vllm_surgery.engine.requests.ledger import Before
from vllm_surgery.engine.rpc_errors import error_of
from vllm_surgery.errors import ConflictError, EngineError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from vllm_surgery.engine.requests.board import Board
    from vllm_surgery.engine.requests.ledger import Change

    Answers = Sequence[dict[str, Any]]


class Engines(Protocol):
    """All engines of a server, or the one of a `vllm.LLM`."""

    @property
    def alone(self) -> bool:
        """Whether there is but one, so that a change needs no agreement."""

    async def ledger(self, step: str, token: str, payload: dict[str, Any]) -> list[dict[str, Any]]:
        """Asks each engine's `Ledger.answer`."""


@dataclass(frozen=True)
class Changed:
    """A change that was carried out.

    Attributes:
        state: of the slots, over all engines.
        before: what was offered until then.
        fill_milliseconds: what filling took on the slowest engine; of several, until the last had done it.
    """

    state: SlotState
    before: Offer
    fill_milliseconds: float


@dataclass(frozen=True)
class SlotState:
    """The slots of all engines of a server.

    Attributes:
        count: how many each has.
        offer: what requests can choose.
        since: when that was last changed, in seconds since the epoch.
        unpatched: requests that run or wait without a patch.
        held: the digest of the patch that the weights hold; empty for none.
        slots: each filled one: ``name``, ``id``, ``digest``, ``units``, ``users``, ``leaving``.
    """

    count: int
    offer: Offer
    since: float
    unpatched: int
    held: str
    slots: tuple[dict[str, Any], ...]


class SlotLeader:
    """Changes slots. Any number of leaders may lead the same engines; these let one go at a time.

    Args:
        engines: of the server.
        board: what this process offers its requests.
        told: hears of the slots whenever they are known.
    """

    def __init__(self, engines: Engines, board: Board, told: Callable[[SlotState], None] = lambda _: None) -> None:
        self.engines, self._board, self._told = engines, board, told

    async def state(self) -> SlotState:
        """Asks all engines for their slots.

        Raises:
            EngineError: the engines don't agree.
        """
        return self._known(await self._all("state", "", {}))

    async def change(self, change: Change) -> Changed:
        """Carries out a change on every engine or on none. No request waits for it.

        Raises:
            ConflictError: another change is under way, the epoch is another, or all slots are in use.
            UsageError: the default names what isn't there, or a patch is to be freed that it names.
            CannotSwapError: this model can't have a patch in a slot.
            EngineError: the engines don't agree.
        """
        with tracing.span(tracing.FILL, **_told(change)) as seen:
            changed = await self._carried_out(change)
            seen |= {"epoch": changed.state.offer.epoch, "fill_ms": changed.fill_milliseconds}
        self._board.publish(changed.state.offer)
        return changed

    async def _carried_out(self, change: Change) -> Changed:
        token = uuid.uuid4().hex
        try:
            return await (self._change_at_once if self.engines.alone else self._change_together)(token, change)
        except BaseException:
            with suppress(Exception):  # An engine that is gone needs no telling.
                await self.engines.ledger("discard", token, {})
            raise

    @asynccontextmanager
    async def claim(self) -> AsyncIterator[str]:
        """Has the slots to itself: meanwhile only changes with the claim that it gives are carried out.

        Raises:
            ConflictError: another change is under way, or another caller has them.
        """
        token = uuid.uuid4().hex
        try:
            await self.renew(token)
            yield token
        finally:
            with suppress(Exception):
                await self.engines.ledger("release", token, {})

    async def renew(self, claim: str) -> None:
        """Keeps a claim for as long again; see `vllm_surgery.engine.requests.ledger.LEASE_SECONDS`.

        Raises:
            ConflictError: somebody else has the slots by now.
        """
        await self._all("claim", claim, {})

    async def rehearse(self, change: Change) -> Changed:
        """Does everything of a change that comes before anybody sees it, and takes it back.

        Raises:
            SurgeryError: what `change` would refuse.
        """
        token = uuid.uuid4().hex
        try:
            answers = await self._all("rehearse", token, change.to_data())
        except BaseException:
            with suppress(Exception):
                await self.engines.ledger("discard", token, {})
            raise
        return self._changed(answers, max(float(answer["milliseconds"]) for answer in answers))

    async def before(self) -> Before:
        """What was offered before the last change, which led to the epoch that it names.

        Raises:
            ConflictError: nothing was changed yet.
        """
        answers = await self._all("before", "", {})
        first = answers[0]
        return Before(Offer.from_data(first["offer"]), frozenset(first["kept"]), first["patches"], first["epoch"])

    async def _change_at_once(self, token: str, change: Change) -> Changed:
        answers = await self._all("change", token, change.to_data())
        return self._changed(answers, float(answers[0]["milliseconds"]))

    async def _change_together(self, token: str, change: Change) -> Changed:
        started = time.perf_counter()
        await self._all("prepare", token, change.to_data())
        filled = (time.perf_counter() - started) * 1000
        return self._changed(await self._all("commit", token, {}), filled)

    def _changed(self, answers: Answers, filled: float) -> Changed:
        return Changed(self._known(answers), Offer.from_data(answers[0]["before"]), filled)

    @property
    def offer(self) -> Offer:
        """The offer as far as this process knows without asking an engine."""
        return self._board.offer()

    async def patches(self, digest: str) -> list[dict[str, Any]]:
        """The patches in a slot themselves, as plain data.

        Raises:
            ConflictError: they are in none any more.
        """
        answers = await self._all("patches", "", {"digest": digest})
        found: list[dict[str, Any]] = answers[0]["patches"]
        return found

    def _known(self, answers: Answers) -> SlotState:
        state = _together(answers)
        self._told(state)
        return state

    async def _all(self, step: str, token: str, payload: dict[str, Any]) -> list[dict[str, Any]]:
        answers = await self.engines.ledger(step, token, payload)
        for number, answer in enumerate(answers):
            if not answer["ok"]:
                raise error_of(answer, f"engine {number}")
        return answers


def _told(change: Change) -> dict[str, Any]:
    """A change as attributes of its span."""
    return {
        "patches": [fill.offered.id for fill in change.fills],
        "free": list(change.free),
        "default": None if change.shares is None else [f"{name} {share:g}" for name, share in change.shares.items()],
    }


def _together(answers: Answers) -> SlotState:
    """The state of several engines. What they offer is the same; who uses it is added up.

    Raises:
        ConflictError: a change is under way between them.
    """
    offers = [Offer.from_data(answer["offer"]) for answer in answers]
    if not offers:
        raise EngineError("no engine tells of its slots")
    if any(offer != offers[0] for offer in offers):
        raise ConflictError("another swap is running")
    slots: dict[str, dict[str, Any]] = {}
    for slot in (slot for answer in answers for slot in answer["slots"]):
        known = slots.setdefault(slot["digest"], {**slot, "users": 0, "leaving": True})
        known["users"] += slot["users"]
        known["leaving"] = known["leaving"] and slot["leaving"]
    unpatched = sum(answer["unpatched"] for answer in answers)
    since = max(float(answer["since"]) for answer in answers)
    held = {str(answer["held"]) for answer in answers}
    if len(held) > 1:
        raise ConflictError("another swap is running")
    return SlotState(int(answers[0]["count"]), offers[0], since, unpatched, held.pop(), tuple(slots.values()))
