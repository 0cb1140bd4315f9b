# SPDX-License-Identifier: Apache-2.0
"""Metrics of swaps: what is served, how swaps ended, how long they took."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client import Counter, Gauge, Histogram

from vllm_surgery.engine import tracing
from vllm_surgery.engine.metrics import REFUSED, Spec
from vllm_surgery.errors import CannotSwapError, ConflictError, MixedWeightsError, SurgeryError, SwapFailedError

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from vllm_surgery.client.protocol import SwapMode, SwapReport
    from vllm_surgery.engine.metrics import Metrics
    from vllm_surgery.engine.swap.transaction import ServedStatus, Swapper
    from vllm_surgery.patch.patch_set import PatchSet
    from vllm_surgery.patch.watched_files import Snapshot

# From a dense module of a tiny model, in a millisecond, to staging hundreds of experts from a cold disk.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
PHASES = ("stage", "pause", "apply", "verify", "total")

INFO = Spec(
    Gauge,
    "vllm_surgery_patch_info",
    "1 for the patches that are served (active) and those that followed files ask for (desired).",
    ("state",),
    {"multiprocess_mode": "mostrecent"},
)
SWAPS = Spec(
    Counter,
    "vllm_surgery_swaps_total",
    "Swaps to these patches, by how they ended; patches that were refused share one label.",
    ("result",),
)
SECONDS = Spec(
    Histogram,
    "vllm_surgery_swap_seconds",
    "Time that each phase of a swap took; tokens stand still from pause on.",
    ("phase",),
    {"buckets": _SECONDS},
    by_patch=False,
)

VERIFIED = Spec(
    Counter,
    "vllm_surgery_swap_verified_places_total",
    "Places in which swaps read the new weights back, and found them.",
    by_patch=False,
)
UNVERIFIED = Spec(
    Counter,
    "vllm_surgery_swap_unverified_parts_total",
    "Parts of the model that swaps wrote and couldn't read back; each swap's answer says why.",
    by_patch=False,
)

SPECS = (INFO, SWAPS, SECONDS, VERIFIED, UNVERIFIED)
"""All of them, for dashboards and rules."""

STATES = ("active", "desired")
_DONE, _UNCHANGED = "done", "unchanged"
_RESULTS: dict[type[Exception], str] = {
    ConflictError: "conflict",
    CannotSwapError: "impossible",
    SwapFailedError: "undone",
    MixedWeightsError: "mixed",
    SurgeryError: "refused",
    Exception: "error",
}
_CARRIED_OUT = frozenset({_DONE, _UNCHANGED, "undone", "mixed"})
"""The results of patches that were for this model. A client can't make up any number of those."""

RESULTS = (_DONE, _UNCHANGED, *_RESULTS.values())


class InstrumentedSwapper:
    """Wrapper of a `Swapper` that counts its swaps on ``/metrics``.

    Args:
        swapper: carries swaps out.
        metrics: where they are shown.
        model_name: as vLLM's own metrics name it.
    """

    def __init__(self, swapper: Swapper, metrics: Metrics, model_name: str) -> None:
        self._swapper, self._metrics, self._model_name = swapper, metrics, model_name
        self._shown: dict[str, str] = {}

    async def status(self) -> ServedStatus:
        """Status of the engine; shows what is active."""
        status = await self._swapper.status()
        self.show_active(status.active)
        return status

    async def swap(self, patches: PatchSet, *, mode: SwapMode = "keep", if_epoch: int | None = None) -> SwapReport:
        """Swaps; shows the result and the time of each phase."""
        return await self.counted(self._swapper.swap(patches, mode=mode, if_epoch=if_epoch), patches.id)

    async def check(self, patches: PatchSet, *, if_epoch: int | None = None) -> SwapReport:
        """Tells what a swap would; that is no swap, so it isn't counted."""
        return await self._swapper.check(patches, if_epoch=if_epoch)

    async def undo(self, *, mode: SwapMode = "keep", if_epoch: int | None = None) -> SwapReport:
        """Takes the last swap back; shows the same of it as of any swap. One that failed has no patch to name."""
        return await self.counted(self._swapper.undo(mode=mode, if_epoch=if_epoch), REFUSED)

    async def counted(self, work: Coroutine[Any, Any, SwapReport], patch: str) -> SwapReport:
        """Shows the result of a swap and the time of each phase.

        Args:
            work: the swap.
            patch: the id that its failure is told by.
        """
        with tracing.span(tracing.SWAP, model=self._model_name) as seen:
            try:
                report = await work
            except Exception as error:
                seen |= {"patch": patch, "result": self.count_failure(error, patch)}
                raise
            times = {f"{phase}_ms": getattr(report.milliseconds, phase) for phase in PHASES}
            result = _UNCHANGED if report.id == report.previous else _DONE
            seen |= {"patch": report.id, "previous": report.previous, "epoch": report.epoch, "result": result, **times}
        self._count(report.id, result)
        self._shown["active"] = report.previous  # Another process may have swapped since this one last looked.
        self.show_active(report.id)
        self._metrics.total(VERIFIED, self._model_name).inc(report.verified)
        self._metrics.total(UNVERIFIED, self._model_name).inc(sum(each.parts for each in report.unverified))
        if report.id != report.previous:
            for phase in PHASES:
                seconds = getattr(report.milliseconds, phase) / 1000
                self._metrics.total(SECONDS, self._model_name, phase).observe(seconds)
        return report

    def count_failure(self, error: Exception, patch: str) -> str:
        """Counts a swap that failed or was refused; the result that it counts as."""
        result = next(_RESULTS[kind] for kind in type(error).__mro__ if kind in _RESULTS)
        self._count(patch, result)
        return result

    def count_change(self, patch: str) -> None:
        """Counts a swap that was carried out and that nobody timed; shows what is served now."""
        self._count(patch, _UNCHANGED if self._shown.get("active") == patch else _DONE)
        self.show_active(patch)

    def show_active(self, patch: str) -> None:
        """Shows the patches that are served."""
        self._show("active", patch)

    def show_desired(self, snapshot: Snapshot) -> None:
        """Shows the patches that watched files ask for; none where the files are refused."""
        self._show("desired", snapshot.id)

    def _count(self, patch: str, result: str) -> None:
        label = patch if result in _CARRIED_OUT else REFUSED
        self._metrics.series(SWAPS, self._model_name, label, result).inc()

    def _show(self, state: str, patch: str | None) -> None:
        self._metrics.hold(self._model_name, state, patch)
        before = self._shown.get(state)
        if before is not None and before != patch:
            self._metrics.series(INFO, self._model_name, before, state).set(0)
        self._shown.pop(state, None)
        if patch is not None:
            self._shown[state] = patch
            self._metrics.series(INFO, self._model_name, patch, state).set(1)
