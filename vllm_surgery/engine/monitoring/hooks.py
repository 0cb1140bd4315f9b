# SPDX-License-Identifier: Apache-2.0
"""Hooks that let `LoopMonitor` see every token of an engine."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

from vllm_surgery.engine import touchpoints
from vllm_surgery.engine.monitoring.llvmlite import let_vllm_look_through_llvmlite
from vllm_surgery.engine.offers import OFFERS
from vllm_surgery.engine.requests.admission import REQUEST_PATCH, patch_id
from vllm_surgery.engine.server_config import logger, weight_patches
from vllm_surgery.engine.settings import Settings
from vllm_surgery.engine.weight_version import noted_version, see_version
from vllm_surgery.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vllm_surgery.engine.monitoring.monitor import LoopMonitor

_MONITOR = "_vllm_surgery_monitor"
"""Where an `OutputProcessor` that is watched has its `LoopMonitor`."""


def install_watching(attach: Callable[[Any, Any], None]) -> None:
    """Installs the hooks into this process, once; a vLLM that lacks a touch point serves without being watched.

    Args:
        attach: called with each engine that is made, an `AsyncLLM` or `LLMEngine`, and its config.
    """
    try:
        OFFERS["watch"].check()
    except EngineError as error:
        logger.warning("vllm-surgery: requests are not watched for loops: %s", error)
        return
    let_vllm_look_through_llvmlite()
    touchpoints.ASYNC_ENGINE.wrap(functools.partial(async_engine_hook, attach=attach))
    touchpoints.SYNC_ENGINE.wrap(functools.partial(engine_hook, attach=attach))
    touchpoints.PROCESS_OUTPUTS.wrap(process_outputs_hook)
    touchpoints.ABORT_REQUESTS.wrap(abort_requests_hook)


def engine_hook(original: Callable[..., Any], attach: Callable[[Any, Any], None]) -> Callable[..., Any]:
    """Wraps `LLMEngine.__init__`, which knows both config and output processor."""

    def __init__(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        original(self, vllm_config, *args, **kwargs)
        _unless_it_fails(_watch, self, vllm_config)
        attach(self, vllm_config)

    return __init__


def async_engine_hook(original: Callable[..., Any], attach: Callable[[Any, Any], None]) -> Callable[..., Any]:
    """Wraps `AsyncLLM.__init__`. It waits for an engine in another process, which is time to get ready here."""

    def __init__(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        _unless_it_fails(_get_ready, vllm_config)
        original(self, vllm_config, *args, **kwargs)
        _unless_it_fails(_watch, self, vllm_config)
        attach(self, vllm_config)

    return __init__


def process_outputs_hook(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `OutputProcessor.process_outputs`."""
    told = "weight_version" in inspect.signature(original).parameters

    def process_outputs(
        self: Any,
        engine_core_outputs: Any,
        engine_core_timestamp: float | None = None,
        iteration_stats: Any = None,
        weight_version: str | None = None,
        **more: Any,
    ) -> Any:
        monitor = monitor_of(self)
        # Before, since states of finished requests are gone afterwards; outputs without one are of aborted requests.
        states = self.request_states
        taken = [
            (output, states[output.request_id])
            for output in (engine_core_outputs if monitor is not None else ())
            if output.request_id in states
        ]
        if told:
            more["weight_version"] = weight_version
            see_version(weight_version)
        result = original(self, engine_core_outputs, engine_core_timestamp, iteration_stats, **more)
        if monitor is not None and taken:
            # Afterwards, since by then tokens past a stop string are cut off.
            monitor.step(taken, states, weight_version if told else noted_version())
        return result

    return process_outputs


def abort_requests_hook(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `OutputProcessor.abort_requests`, which calls itself for the children of a parent request."""

    def abort_requests(self: Any, *args: Any, **kwargs: Any) -> Any:
        monitor = monitor_of(self)
        if monitor is None:
            return original(self, *args, **kwargs)
        before = dict(self.request_states)
        aborted = original(self, *args, **kwargs)
        monitor.aborted([before[request] for request in aborted if request in before])
        return aborted

    return abort_requests


def monitor_of(processor: Any) -> LoopMonitor | None:
    """The monitor of an `OutputProcessor`; None where it isn't watched."""
    found: LoopMonitor | None = getattr(processor, _MONITOR, None)
    return found


def _unless_it_fails(act: Callable[..., None], *args: Any) -> None:
    try:
        act(*args)
    except Exception:
        logger.exception("vllm-surgery: requests can't be watched for loops; they are served all the same")


def _get_ready(vllm_config: Any) -> None:
    if Settings.of(vllm_config.additional_config).detect_loops:
        from vllm_surgery.engine.monitoring.detectors import compile_beside

        compile_beside()


def _watch(engine: Any, vllm_config: Any) -> None:
    settings, processor = Settings.of(vllm_config.additional_config), engine.output_processor
    if settings.detect_loops and _knows_patches(vllm_config):
        setattr(processor, _MONITOR, _loop_monitor(processor.tokenizer, vllm_config, settings))
        if settings.slots:
            processor.add_request = _labelling(processor.add_request, engine.input_processor, processor.request_states)


def _labelling(original: Callable[..., Any], admitted_by: Any, states: Mapping[str, Any]) -> Callable[..., Any]:
    """Wraps `OutputProcessor.add_request`, which is told of every request and what was pinned for it."""

    def add_request(request: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(request, *args, **kwargs)
        state, patch = states.get(request.request_id), patch_id(admitted_by, request)
        if state is not None and patch is not None:
            setattr(state, REQUEST_PATCH, patch)
        return result

    return add_request


def _knows_patches(vllm_config: Any) -> bool:
    """True if it is known here which patch made a token. Before vLLM 0.32 only the process that swaps knows."""
    processes = getattr(vllm_config.parallel_config, "_api_process_count", 1)
    if processes == 1 or touchpoints.OUTPUTS_HAVE_VERSIONS.there:
        return True
    logger.warning("vllm-surgery: %d API processes are not watched for loops; vLLM 0.32 lets them be", processes)
    return False


def _loop_monitor(tokenizer: Any, vllm_config: Any, settings: Settings) -> LoopMonitor:
    # Only here: these load Numba, for which workers have no use.
    from vllm_surgery.engine.metrics import process_metrics
    from vllm_surgery.engine.monitoring.detectors import Detectors
    from vllm_surgery.engine.monitoring.log import LoopLog
    from vllm_surgery.engine.monitoring.metrics import LoopMetrics
    from vllm_surgery.engine.monitoring.monitor import LoopMonitor

    let_vllm_look_through_llvmlite()
    detectors = Detectors(tokenizer)
    return LoopMonitor(
        LoopMetrics(process_metrics(), vllm_config.model_config.served_model_name),
        detectors.new,
        LoopLog(detectors.text if settings.log_text else None),
        weight_patches(vllm_config).id,
    )
