# SPDX-License-Identifier: Apache-2.0
"""Registry of the package's metrics on vLLM's own ``/metrics``, with a bound on their series.

A metric is declared once, as a `Spec`, and made at its first use. That has to be in the process that serves
``/metrics``, since prometheus_client decides by the environment of that process where values are kept.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cache
from threading import RLock
from typing import TYPE_CHECKING, Any, TypeAlias

from prometheus_client import REGISTRY, Counter, Gauge, Histogram

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

MODEL, PATCH = "model_name", "patch"
"""Labels: every metric has the first, and all that differ by patch have the second."""

PATCHES_KEPT = 48
"""Patch ids that have series. At about 170 lines each, this keeps ``/metrics`` below 1.5 MB; a person won't swap more
patches than that between two looks at a dashboard."""

REFUSED = "refused"
"""The label of all patches that were refused: whoever sends those, they take no series from others."""

OTHER = "other"
"""The label of further patches where series can't be removed. No patch has it for an id, since ids have a digest."""

_Collector: TypeAlias = Counter | Gauge | Histogram


@dataclass(frozen=True)
class Spec:
    """Declaration of a metric.

    Attributes:
        type: of prometheus_client's classes.
        name: as it reads on ``/metrics``. Never below ``vllm:``, whose metrics vLLM unregisters at its start.
        documentation: one line.
        labels: beside those that `MODEL` and `PATCH` are.
        options: for `type`. A gauge needs a ``multiprocess_mode``, for servers of several API processes.
        by_patch: whether there is a series for each patch.
    """

    type: type[Counter] | type[Gauge] | type[Histogram]
    name: str
    documentation: str
    labels: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    by_patch: bool = True

    @property
    def all_labels(self) -> tuple[str, ...]:
        """All of a series' labels, in order."""
        return (MODEL, *((PATCH,) if self.by_patch else ()), *self.labels)


class Metrics:
    """Metrics of one registry, however many engines of the process share it.

    Only the `patches_kept` patches that were used last have series: for each further one, all series of the patch that
    went unused longest are removed, and begin at zero should it come back. Patches that are held keep theirs.
    Where several processes share their metrics, prometheus_client can't remove any; there the patches after the first
    `patches_kept` share the label `OTHER`.

    Args:
        registry: where collectors are registered.
        patches_kept: how many patches may have series.
        removable: whether series can be removed.
    """

    def __init__(
        self,
        registry: CollectorRegistry = REGISTRY,
        patches_kept: int = PATCHES_KEPT,
        *,
        removable: bool | None = None,
    ) -> None:
        self._registry, self._patches_kept = registry, patches_kept
        self._removable = "PROMETHEUS_MULTIPROC_DIR" not in os.environ if removable is None else removable
        self._collectors: dict[str, _Collector] = {}
        self._series: OrderedDict[str, dict[tuple[str, ...], Any]] = OrderedDict()
        self._held: dict[tuple[str, str], str] = {}
        self._lock = RLock()

    def series(self, spec: Spec, model_name: str, patch: str, *labels: str) -> Any:
        """The one series of a metric that has these label values, made at first use. Not to be kept by the caller.

        Args:
            spec: the metric.
            model_name: as vLLM's own metrics name it.
            patch: a patch id, or ids joined by ``+``.
            labels: a value for each of the labels that `spec` names.
        """
        with self._lock:
            patch = self.label(patch)
            known = self._series[patch]
            key = (spec.name, model_name, *labels)
            if key not in known:
                known[key] = self._collector(spec).labels(model_name, patch, *labels)
            return known[key]

    def total(self, spec: Spec, model_name: str, *labels: str) -> Any:
        """The one series of a metric that isn't by patch, made at first use."""
        with self._lock:
            return self._collector(spec).labels(model_name, *labels)

    def hold(self, model_name: str, state: str, patch: str | None) -> None:
        """Keeps the series of the patch in this state, and no longer those of the one before; None for none."""
        with self._lock:
            if patch is None:
                self._held.pop((model_name, state), None)
            else:
                self._held[model_name, state] = patch

    def label(self, patch: str) -> str:
        """Value of the label ``patch``, for which there is room from now on."""
        with self._lock:
            if patch in self._series:
                self._series.move_to_end(patch)
            elif len(self._series) < self._patches_kept:
                self._series[patch] = {}
            elif self._removable:
                self._remove_oldest()
                self._series[patch] = {}
            else:
                patch = OTHER
                self._series.setdefault(patch, {})
        return patch

    def _remove_oldest(self) -> None:
        held = set(self._held.values())
        patch = next((patch for patch in self._series if patch not in held), None)
        if patch is None:  # More are held than have room: two for each model, so this stays bounded too.
            return
        for name, model_name, *labels in self._series.pop(patch):
            self._collectors[name].remove(model_name, patch, *labels)

    def _collector(self, spec: Spec) -> _Collector:
        if spec.name not in self._collectors:
            self._collectors[spec.name] = spec.type(
                spec.name, spec.documentation, spec.all_labels, registry=self._registry, **spec.options
            )
        return self._collectors[spec.name]


@cache
def process_metrics() -> Metrics:
    """Metrics on this process's ``/metrics``."""
    return Metrics()
