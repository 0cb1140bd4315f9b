# SPDX-License-Identifier: Apache-2.0
"""What callers over HTTP ask of slots reaches them, and answers carry the header however far the application is."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi import FastAPI

from tests.examples import patch_data
from vllm_surgery.client.protocol import ModelSummary, SlotsReport, SlotsState, SlotTimes, SwapRequest
from vllm_surgery.engine.http.access import ForbiddenError
from vllm_surgery.engine.http.endpoint import _add_header
from vllm_surgery.engine.http.service import SurgeryService
from vllm_surgery.engine.requests.choice import Offered
from vllm_surgery.engine.requests.header import note_choice
from vllm_surgery.errors import CannotSwapError
from vllm_surgery.patch.folders import PatchLibrary

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vllm_surgery import PatchSet

STATE = SlotsState(count=2, default={"none": 1.0}, patches=[], unpatched=0)
REPORT = SlotsReport(epoch=1, slots=STATE, milliseconds=SlotTimes(fill=1.0, total=2.0))
INLINE = patch_data(name="inline")


@dataclass
class Slots:
    """Remembers what is asked of it."""

    asked: list[Any] = field(default_factory=list)

    async def change(
        self,
        fill: Sequence[PatchSet],
        *,
        free: Sequence[str],
        shares: Mapping[str, float] | None,
        if_epoch: int | None,
        check: bool,
    ) -> SlotsReport:
        rehearsed = ["rehearsed"] if check else []
        named = [patches.id.partition("@")[0] for patches in fill]
        self.asked.append((named, list(free), shares, if_epoch, *rehearsed))
        return REPORT

    async def promote(self, *, mode: str, if_epoch: int | None) -> str:
        self.asked.append((mode, if_epoch))
        return "promoted"


def service(slots: Slots | None, *, inline: bool = True) -> SurgeryService:
    model = ModelSummary(name="m", architectures=[], layers=1, experts=None)
    return SurgeryService(None, PatchLibrary([]), model, inline=inline, slots=slots)  # type: ignore[arg-type]


def put(here: SurgeryService, **asked: Any) -> Any:
    return asyncio.run(here.put(SwapRequest(**asked)))


@pytest.mark.parametrize(
    ("asked", "reached"),
    [
        ({"fill": [INLINE, {**INLINE, "name": "two"}]}, (["inline", "two"], [], None, None)),
        ({"default": "a"}, ([], [], {"a": 1.0}, None)),
        ({"default": {"a": 0.5, "none": 0.5}, "if_epoch": 3}, ([], [], {"a": 0.5, "none": 0.5}, 3)),
        ({"free": ["a", "b"], "fill": [INLINE]}, (["inline"], ["a", "b"], None, None)),
        ({"default": "a", "check": True}, ([], [], {"a": 1.0}, None, "rehearsed")),
    ],
)
def test_a_change_reaches_the_slots(asked: dict[str, Any], reached: Any) -> None:
    slots = Slots()
    assert put(service(slots), **asked) == REPORT
    assert slots.asked == [reached]


def test_a_promotion_reaches_the_slots() -> None:
    slots = Slots()
    assert put(service(slots), promote=True, mode="wait", if_epoch=7) == "promoted"
    assert slots.asked == [("wait", 7)]


@pytest.mark.parametrize("asked", [{"free": ["a"]}, {"promote": True}])
def test_a_server_without_slots_says_so(asked: dict[str, Any]) -> None:
    with pytest.raises(CannotSwapError, match="this server has no slots: it was started without --patch-slots"):
        put(service(None), **asked)


def test_patches_that_may_not_be_sent_may_not_be_filled_either() -> None:
    slots = Slots()
    with pytest.raises(ForbiddenError, match="takes no patches from callers"):
        put(service(slots, inline=False), fill=[INLINE])
    assert slots.asked == []


@pytest.mark.parametrize("started", [False, True])
def test_answers_carry_the_header(started: bool) -> None:
    app = FastAPI()

    @app.get("/")
    async def route() -> str:
        note_choice(Offered("p", "p@01234567", "digest"))
        return "answer"

    if started:
        app.middleware_stack = app.build_middleware_stack()
    _add_header(app)

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            return await client.get("/")

    assert asyncio.run(ask()).headers["x-surgery-patch"] == "p@01234567"
