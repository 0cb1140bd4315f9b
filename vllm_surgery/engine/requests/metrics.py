# SPDX-License-Identifier: Apache-2.0
"""Metrics of slots: how many hold a patch that requests can choose, how many are free, and what changes led to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import Gauge

from vllm_surgery.engine.metrics import REFUSED, Spec
from vllm_surgery.engine.swap.metrics import InstrumentedSwapper

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vllm_surgery.client.protocol import SlotsReport, SlotsState, SwapMode, SwapReport
    from vllm_surgery.engine.metrics import Metrics
    from vllm_surgery.engine.requests.leader import SlotState
    from vllm_surgery.engine.requests.swapper import SlotSwapper
    from vllm_surgery.patch.patch_set import PatchSet

STATES = ("used", "free")

SLOTS = Spec(
    Gauge,
    "vllm_surgery_slots",
    "Slots whose patch requests can choose (used), and all others (free).",
    ("state",),
    {"multiprocess_mode": "mostrecent"},
    by_patch=False,
)

SPECS = (SLOTS,)
"""All of them, for dashboards and rules."""


class SlotGauge:
    """Gauge of one server's slots.

    A slot that is left by its last choice counts as free at once, although requests may still end under it: when they
    do, nobody in this process is told.

    Args:
        metrics: where it is shown.
        model_name: as vLLM's own metrics name it.
    """

    def __init__(self, metrics: Metrics, model_name: str) -> None:
        self._metrics, self._model_name = metrics, model_name

    def show(self, state: SlotState) -> None:
        """Shows the slots as they are now."""
        used = len({item.digest for item in state.offer.patches.values()})
        for name, number in zip(STATES, (used, state.count - used), strict=True):
            self._metrics.total(SLOTS, self._model_name, name).set(number)


class InstrumentedSlots(InstrumentedSwapper):
    """Wrapper of a `SlotSwapper` that counts its swaps on ``/metrics``, promotions too, and shows each new default.

    Args:
        slots: carries changes out.
        metrics: where they are shown.
        model_name: as vLLM's own metrics name it.
    """

    def __init__(self, slots: SlotSwapper, metrics: Metrics, model_name: str) -> None:
        super().__init__(slots, metrics, model_name)
        self._slots = slots

    async def promote(self, *, mode: SwapMode = "keep", if_epoch: int | None = None) -> SwapReport:
        """Promotes; shows the same of it as of any swap. One that failed has no patch to name."""
        return await self.counted(self._slots.promote(mode=mode, if_epoch=if_epoch), REFUSED)

    async def share(
        self, patches: PatchSet, share: float, *, if_epoch: int | None = None, check: bool = False
    ) -> SwapReport:
        """Gives a patch a share; shows the same of it as of any swap. A check is none, so it isn't counted."""
        sharing = self._slots.share(patches, share, if_epoch=if_epoch, check=check)
        return await (sharing if check else self.counted(sharing, patches.id))

    async def slots(self) -> SlotsState:
        """The slots, and how many requests use each."""
        return await self._slots.slots()

    async def change(
        self,
        fill: Sequence[PatchSet] = (),
        *,
        free: Sequence[str] = (),
        shares: Mapping[str, float] | None = None,
        if_epoch: int | None = None,
        check: bool = False,
    ) -> SlotsReport:
        """Fills and frees slots and sets the default. One that sets it counts as a swap to it, unless it is a check."""
        changing = self._slots.change(fill, free=free, shares=shares, if_epoch=if_epoch, check=check)
        if check or shares is None:
            return await changing
        try:
            report = await changing
        except Exception as error:
            self.count_failure(error, REFUSED)
            raise
        self.count_change(self._slots.active)
        return report
