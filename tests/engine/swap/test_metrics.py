# SPDX-License-Identifier: Apache-2.0
"""What ``/metrics`` says of swaps."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from tests.engine.http.test_endpoint import A_ID, B_ID, A, B, FakeSwapper
from vllm_surgery import Patch
from vllm_surgery.api import patch_set
from vllm_surgery.client.protocol import Unverified
from vllm_surgery.engine.metrics import PATCHES_KEPT, Metrics
from vllm_surgery.engine.swap.metrics import SWAPS, InstrumentedSwapper
from vllm_surgery.errors import (
    CannotSwapError,
    ConflictError,
    MismatchError,
    MixedWeightsError,
    SurgeryError,
    SwapFailedError,
)
from vllm_surgery.patch.watched_files import Snapshot

SETS = {A_ID: patch_set(Patch.from_data(A)), B_ID: patch_set(Patch.from_data(B)), "none": patch_set([])}


class Measured:
    """A measured swapper, and the registry that it shows itself on."""

    def __init__(self, active: str = "none") -> None:
        self.registry = CollectorRegistry()
        self.plain = FakeSwapper(active)
        self.metrics = Metrics(self.registry, removable=True)
        self.swapper = InstrumentedSwapper(self.plain, self.metrics, "model")

    def swap(self, patch: str) -> None:
        asyncio.run(self.swapper.swap(SETS[patch]))

    def value(self, name: str, patch: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, {"model_name": "model", "patch": patch, **labels})

    def of_model(self, name: str) -> float | None:
        return self.registry.get_sample_value(name, {"model_name": "model"})

    def seconds(self, part: str, phase: str) -> float | None:
        labels = {"model_name": "model", "phase": phase}
        return self.registry.get_sample_value(f"vllm_surgery_swap_seconds_{part}", labels)

    def shown(self, state: str) -> list[str]:
        return [patch for patch in SETS if self.value("vllm_surgery_patch_info", patch, state=state) == 1]


def test_what_is_active_is_shown() -> None:
    measured = Measured(A_ID)
    asyncio.run(measured.swapper.status())
    assert measured.shown("active") == [A_ID]
    measured.swap(B_ID)
    assert measured.shown("active") == [B_ID]


def test_what_another_process_swapped_in_is_shown_no_longer() -> None:
    measured = Measured(A_ID)
    asyncio.run(measured.swapper.status())
    measured.plain.active = B_ID
    measured.swap("none")
    assert measured.value("vllm_surgery_patch_info", B_ID, state="active") == 0
    assert measured.shown("active") in (["none"], [A_ID, "none"])  # A's is the other process's to take back.


def test_what_files_ask_for_is_shown() -> None:
    measured = Measured()
    for patch in (A_ID, B_ID):
        measured.swapper.show_desired(Snapshot("content", SETS[patch]))
        assert measured.shown("desired") == [patch]
    measured.swapper.show_desired(Snapshot("content", None, "refused"))
    assert measured.shown("desired") == []


def test_a_swap_is_counted_with_its_times() -> None:
    measured = Measured()
    measured.swap(A_ID)
    assert measured.value("vllm_surgery_swaps_total", A_ID, result="done") == 1
    times = {phase: measured.seconds("sum", phase) for phase in ("stage", "pause", "apply", "verify", "total")}
    assert times == pytest.approx({"stage": 0.001, "pause": 0.002, "apply": 0.003, "verify": 0.004, "total": 0.01})


def test_what_was_not_verified_is_counted() -> None:
    measured = Measured()
    measured.plain.unverified = [Unverified(parts=2, reason="no kernel"), Unverified(parts=1, reason="elsewhere")]
    measured.swap(A_ID)
    assert measured.of_model("vllm_surgery_swap_verified_places_total") == 7
    assert measured.of_model("vllm_surgery_swap_unverified_parts_total") == 3


def test_a_swap_to_what_is_active_took_no_time() -> None:
    measured = Measured(A_ID)
    measured.swap(A_ID)
    assert measured.value("vllm_surgery_swaps_total", A_ID, result="unchanged") == 1
    assert measured.seconds("count", "total") is None


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (ConflictError("another swap runs"), "conflict"),
        (CannotSwapError("experts are balanced"), "impossible"),
        (SwapFailedError("rank 1"), "undone"),
        (MixedWeightsError("rank 1"), "mixed"),
        (MismatchError("a", "b", "c"), "refused"),
        (SurgeryError("too large"), "refused"),
        (TimeoutError("no answer"), "error"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value,
)
def test_a_swap_that_was_not_carried_out_is_counted_by_why(error: Exception, result: str) -> None:
    measured = Measured()
    measured.plain.error = error
    with pytest.raises(type(error)):
        measured.swap(A_ID)
    label = A_ID if result in {"undone", "mixed"} else "refused"
    assert measured.value("vllm_surgery_swaps_total", label, result=result) == 1


def test_refused_patches_take_no_series_from_others_and_get_none() -> None:
    measured = Measured(A_ID)
    asyncio.run(measured.swapper.status())
    measured.swapper.show_desired(Snapshot("content", SETS[B_ID]))
    measured.plain.error = MismatchError("a", "b", "c")
    for number in range(2 * PATCHES_KEPT):
        with pytest.raises(MismatchError):
            asyncio.run(measured.swapper.swap(patch_set([Patch.from_data({**A, "name": f"p{number}"})])))
    assert (measured.shown("active"), measured.shown("desired")) == ([A_ID], [B_ID])
    assert measured.value("vllm_surgery_swaps_total", "refused", result="refused") == 2 * PATCHES_KEPT
    assert b'patch="p' not in generate_latest(measured.registry)


def test_the_active_and_the_desired_patch_keep_their_series_however_many_others_come() -> None:
    measured = Measured(A_ID)
    asyncio.run(measured.swapper.status())
    measured.swapper.show_desired(Snapshot("content", SETS[B_ID]))
    for number in range(2 * PATCHES_KEPT):
        measured.metrics.series(SWAPS, "model", f"p{number}", "done").inc()
    assert (measured.shown("active"), measured.shown("desired")) == ([A_ID], [B_ID])
