# SPDX-License-Identifier: Apache-2.0
"""A `LoopMonitor` under test, with vLLM's outputs and states played by plain objects."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from prometheus_client import CollectorRegistry

from vllm_surgery.engine.metrics import Metrics
from vllm_surgery.engine.monitoring.hooks import abort_requests_hook, process_outputs_hook
from vllm_surgery.engine.monitoring.log import LoopLog
from vllm_surgery.engine.monitoring.metrics import LoopMetrics
from vllm_surgery.engine.monitoring.monitor import LoopMonitor
from vllm_surgery.loops import Watcher

HEALTHY = [2000 + number for number in range(200)]
"""Tokens without a loop."""

LOOPED = [1000 + number for number in range(40)] + list(range(20)) * 20
"""Tokens that end in a verbatim loop: onset 40, period 20, 400 tokens long."""


COMPARED = ("vllm_surgery_answers_total", "vllm_surgery_sound_answer_tokens")


def samples(registry: CollectorRegistry, *, zeros: bool = False) -> dict[tuple[str, ...], float]:
    """Every counter and gauge of this package that isn't zero, by name and label values (sorted by label's name).

    The model's name, ``_created`` times, histograms' buckets, times, whether watching runs, and what is counted again to
    compare patches are left out.
    """
    return {
        (sample.name.removeprefix("vllm_surgery_"), *_values(sample.labels)): sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name.startswith("vllm_surgery_")
        and sample.name != "vllm_surgery_watching"
        and not sample.name.startswith(COMPARED)
        and not sample.name.endswith(("_created", "_bucket", "_seconds_total"))
        and (zeros or sample.value)
    }


def _values(labels: dict[str, str]) -> list[str]:
    return [value for name, value in sorted(labels.items()) if name not in {"model_name", "le"}]


def state(request_id: str, **more: Any) -> Any:
    """What vLLM's `RequestState` has."""
    return SimpleNamespace(
        request_id=request_id, external_req_id=f"chatcmpl-{request_id}", detokenizer=object(), **more
    )


def output(request_id: str, tokens: list[int], finish_reason: str | None = None) -> Any:
    """What vLLM's `EngineCoreOutput` has."""
    return SimpleNamespace(request_id=request_id, new_token_ids=list(tokens), finish_reason=finish_reason)


class Processor:
    """Does to states what vLLM's `OutputProcessor` does, with the hooks around it.

    Attributes:
        stops: the place in a request's new tokens at which vLLM finds a stop string in them.
    """

    def __init__(self) -> None:
        self.request_states: dict[str, Any] = {}
        self.stops: dict[str, int] = {}
        self.children: dict[str, list[str]] = {}

    def add(self, request_id: str, **more: Any) -> Any:
        self.request_states[request_id] = state(request_id, **more)
        return self.request_states[request_id]

    def process_outputs(
        self, outputs: list[Any], timestamp: Any = None, stats: Any = None, weight_version: str | None = None
    ) -> str:
        for each in outputs:
            stop = self.stops.pop(each.request_id, None)
            if stop is not None:
                del each.new_token_ids[stop:]
            if stop is not None or each.finish_reason is not None:
                self.request_states.pop(each.request_id, None)
        return "processed"

    def abort_requests(self, request_ids: list[str], internal: bool) -> list[str]:
        aborted = []
        for request_id in request_ids:
            if request_id in self.children:
                aborted += self.abort_requests(self.children[request_id], internal=True)
            elif self.request_states.pop(request_id, None) is not None:
                aborted.append(request_id)
        return aborted


class Hooked(Processor):
    """A processor with this package's hooks around its methods."""

    process_outputs = process_outputs_hook(Processor.process_outputs)
    abort_requests = abort_requests_hook(Processor.abort_requests)


@dataclass
class Watched:
    """A watched processor and what it counts in."""

    new_detector: Any = Watcher
    log: LoopLog = field(default_factory=LoopLog)
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    processor: Hooked = field(default_factory=Hooked)

    @property
    def watching(self) -> float | None:
        """The gauge that says whether watching runs."""
        return self.registry.get_sample_value("vllm_surgery_watching", {"model_name": "tiny"})

    def __post_init__(self) -> None:
        metrics = LoopMetrics(Metrics(self.registry, removable=True), "tiny")
        self.monitor = LoopMonitor(metrics, self._new, self.log, "none")
        self.processor._vllm_surgery_monitor = self.monitor  # type: ignore[attr-defined]

    def _new(self) -> Any:
        return self.new_detector()

    def add(self, *request_ids: str, **more: Any) -> None:
        for request_id in request_ids:
            self.processor.add(request_id, **more)

    def put_out(self, *outputs: Any, version: str | None = "default") -> None:
        assert self.processor.process_outputs(list(outputs), 0.0, None, weight_version=version) == "processed"

    def answer(self, request_id: str, tokens: list[int], reason: str = "length", version: str = "default") -> None:
        """A request from its start to its end, one token a step."""
        self.add(request_id)
        for token in tokens[:-1]:
            self.put_out(output(request_id, [token]), version=version)
        self.put_out(output(request_id, tokens[-1:], reason), version=version)

    @property
    def counted(self) -> dict[tuple[str, ...], float]:
        return samples(self.registry)
