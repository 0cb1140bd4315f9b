# SPDX-License-Identifier: Apache-2.0
"""What the metrics have in common: made once, labelled alike, and never more than a bounded number of patches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from tests.engine.monitoring.watched import samples
from vllm_surgery.engine.metrics import OTHER, PATCHES_KEPT, Metrics, Spec, process_metrics
from vllm_surgery.engine.monitoring.metrics import LoopMetrics
from vllm_surgery.loops import KINDS, Loop

if TYPE_CHECKING:
    from vllm_surgery.engine.monitoring.request import WatchedAnswer

SEEN = Spec(Counter, "vllm_surgery_seen_total", "Things seen.", ("colour",))
THERE = Spec(Gauge, "vllm_surgery_there", "Things that are there.", options={"multiprocess_mode": "livesum"})


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def value(registry: CollectorRegistry, patch: str, colour: str = "red") -> float | None:
    return registry.get_sample_value(SEEN.name, {"model_name": "tiny", "patch": patch, "colour": colour})


def test_a_series_has_the_labels_of_all_and_its_own(registry: CollectorRegistry) -> None:
    Metrics(registry).series(SEEN, "tiny", "fix@12345678", "red").inc(3)
    assert value(registry, "fix@12345678") == 3


def test_a_metric_is_made_once_for_all_engines_of_the_process(registry: CollectorRegistry) -> None:
    metrics = Metrics(registry)
    for model in ("tiny", "tiny", "large"):
        metrics.series(SEEN, model, "none", "red").inc()
    assert value(registry, "none") == 2
    assert process_metrics() is process_metrics()


def test_no_metric_is_registered_before_its_first_use(registry: CollectorRegistry) -> None:
    Metrics(registry)
    assert list(registry.collect()) == []


def test_of_ten_thousand_patches_the_last_used_have_series(registry: CollectorRegistry) -> None:
    metrics = Metrics(registry, removable=True)
    for number in range(10_000):
        for spec, labels in ((SEEN, ("red",)), (SEEN, ("blue",)), (THERE, ())):
            metrics.series(spec, "tiny", f"p{number}", *labels).inc()
    kept = {sample[-1] for sample in samples(registry)}
    assert kept == {f"p{number}" for number in range(10_000 - PATCHES_KEPT, 10_000)}
    assert len(samples(registry)) == 3 * PATCHES_KEPT


def test_a_patch_in_use_keeps_its_series_however_many_others_come(registry: CollectorRegistry) -> None:
    metrics = Metrics(registry, patches_kept=3, removable=True)
    for number in range(100):
        metrics.series(SEEN, "tiny", "mine", "red").inc()
        metrics.series(SEEN, "tiny", f"p{number}", "red").inc()
    assert value(registry, "mine") == 100


def test_where_series_cannot_be_removed_later_patches_share_a_label(registry: CollectorRegistry) -> None:
    metrics = Metrics(registry, patches_kept=3, removable=False)
    for number in range(100):
        metrics.series(SEEN, "tiny", f"p{number}", "red").inc()
    assert [value(registry, patch) for patch in ("p0", "p1", "p2", "p3", OTHER)] == [1, 1, 1, None, 97]


def test_a_gauge_comes_back_right_after_its_series_was_removed(registry: CollectorRegistry) -> None:
    loops = LoopMetrics(Metrics(registry, patches_kept=2, removable=True), "tiny")
    loops.entered("verbatim", "old")
    loops.entered("verbatim", "old")
    for patch in ("p1", "p2", "p3"):
        loops.entered("verbatim", patch)
    loops.left("verbatim", "old")
    assert samples(registry)["looping_requests", "verbatim", "old"] == 1


def test_patches_that_share_a_label_share_a_gauge(registry: CollectorRegistry) -> None:
    loops = LoopMetrics(Metrics(registry, patches_kept=1, removable=False), "tiny")
    for patch in ("a", "b", "c"):
        loops.entered("verbatim", patch)
    loops.left("verbatim", "b")
    assert samples(registry)["looping_requests", "verbatim", OTHER] == 1


def test_counters_of_a_patch_begin_at_zero_so_that_a_rate_misses_nothing(registry: CollectorRegistry) -> None:
    LoopMetrics(Metrics(registry), "tiny").open("none")
    shown = samples(registry, zeros=True)
    assert set(shown.values()) == {0}
    assert {("loops_total", kind, "terminal", "none") for kind in KINDS} <= set(shown)


def test_the_page_stays_small_with_all_patches_that_are_kept(registry: CollectorRegistry) -> None:
    loops = LoopMetrics(Metrics(registry, removable=True), "a-model-with-a-name-of-some-length")
    for number in range(2 * PATCHES_KEPT):
        patch = f"smollm2-135m-instruct-lists-number-{number:03}@12345678"
        loops.open(patch)
        loops.ended(looped_in_every_kind(patch))
    assert len(generate_latest(registry)) < 1_500_000


def looped_in_every_kind(patch: str) -> WatchedAnswer:
    from vllm_surgery.engine.monitoring.request import WatchedAnswer

    loops = tuple((Loop(kind, 10, 3, 5.0, 25, "terminal"), patch) for kind in KINDS)
    return WatchedAnswer("length", patch, 25, loops, {(kind, patch): 15 for kind in KINDS})


COUNT_IN_A_PROCESS = """
from vllm_surgery.engine.monitoring.metrics import LoopMetrics
from vllm_surgery.engine.metrics import process_metrics
loops = LoopMetrics(process_metrics(), "tiny")
loops.open("none")
loops.spent("none", 48, 0.5)
loops.entered("verbatim", "none")
"""


def test_api_processes_that_share_a_page_add_up(tmp_path: Path) -> None:
    from prometheus_client.multiprocess import MultiProcessCollector

    for _ in range(2):
        environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
        root = Path(__file__).parents[2]
        subprocess.run([sys.executable, "-c", COUNT_IN_A_PROCESS], env=environment, cwd=root, check=True)
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(tmp_path))
    assert samples(registry) == {("output_tokens_total", "none"): 96, ("looping_requests", "verbatim", "none"): 2}
