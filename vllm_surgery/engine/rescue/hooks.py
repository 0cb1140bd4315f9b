# SPDX-License-Identifier: Apache-2.0
"""Hooks by which answers are rescued, on one engine's objects: where no rescue is asked for, none is there."""

from __future__ import annotations

import asyncio
import copy
from typing import TYPE_CHECKING, Any

from vllm_surgery.client.protocol import ARGUMENTS_KEY, ON_LOOP_KEY
from vllm_surgery.engine.monitoring.hooks import monitor_of
from vllm_surgery.engine.requests.admission import after_inputs, board_of, refusal
from vllm_surgery.engine.server_config import logger
from vllm_surgery.engine.settings import Settings
from vllm_surgery.errors import EngineError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_surgery.engine.rescue.actions import Policy
    from vllm_surgery.engine.rescue.policies import Policies
    from vllm_surgery.engine.rescue.rescuer import Rescuer


def attach_rescue(engine: Any, vllm_config: Any) -> None:
    """Gives an engine a rescuer, where its settings ask for one.

    Args:
        engine: an `AsyncLLM` or `LLMEngine` that is watched for loops already.
        vllm_config: of this engine.

    Raises:
        EngineError: it isn't watched.
    """
    settings = Settings.of(vllm_config.additional_config)
    if settings.on_loop is None:
        return
    # Only here: the detectors load Numba, for which workers have no use.
    from vllm_surgery.engine.metrics import process_metrics
    from vllm_surgery.engine.rescue.metrics import RescueMetrics
    from vllm_surgery.engine.rescue.rescuer import Rescuer

    processor, monitor = engine.output_processor, monitor_of(engine.output_processor)
    if monitor is None:
        raise EngineError("on_loop: requests aren't watched for loops, so none can be rescued")
    policies = settings.policies()
    board = board_of(engine.input_processor)
    metrics = RescueMetrics(process_metrics(), vllm_config.model_config.served_model_name)
    sender = _sender(engine)
    rescuer = Rescuer(processor, monitor, sender, metrics, None if board is None else board.offer)
    monitor.on_ended = rescuer.ended
    after_inputs(engine.input_processor, _checking(policies))
    processor.add_request = _admitting(processor.add_request, policies, rescuer, settings.on_loop_hold_back)
    processor.process_outputs = _rescuing(processor.process_outputs, rescuer)


def _checking(policies: Policies) -> Callable[[Any, str], None]:
    """Refuses a request that asks for what isn't allowed, before vLLM knows of it."""

    def check(request: Any, request_id: str) -> None:
        del request_id
        if request.sampling_params is not None:
            _policy(policies, request)

    return check


def _policy(policies: Policies, request: Any) -> Policy:
    given = request.sampling_params.extra_args or {}
    try:
        return policies.of_request(given.get(ON_LOOP_KEY))
    except UsageError as error:
        raise refusal(str(error), given[ON_LOOP_KEY], f"{ARGUMENTS_KEY}.{ON_LOOP_KEY}") from None


def _admitting(original: Callable[..., Any], policies: Policies, rescuer: Rescuer, behind: int) -> Callable[..., Any]:
    """Wraps `OutputProcessor.add_request`, which is told of every request before the engine is."""

    def add_request(request: Any, *args: Any, **kwargs: Any) -> Any:
        if request.sampling_params is None:
            return original(request, *args, **kwargs)
        policy = _policy(policies, request)  # First: of what is refused nothing may stay.
        result = original(request, *args, **kwargs)
        # A copy, since an engine in this process writes into what it is given.
        rescuer.admit(copy.copy(request), policy, behind)
        return result

    return add_request


def _rescuing(original: Callable[..., Any], rescuer: Rescuer) -> Callable[..., Any]:
    """Wraps `OutputProcessor.process_outputs`, which is watched already."""

    def process_outputs(
        engine_core_outputs: Any,
        engine_core_timestamp: float | None = None,
        iteration_stats: Any = None,
        **more: Any,
    ) -> Any:
        held = rescuer.hold(engine_core_outputs)
        result = original(engine_core_outputs, engine_core_timestamp, iteration_stats, **more)
        rescuer.step(result, iteration_stats, held)
        return result

    return process_outputs


def _sender(engine: Any) -> Any:
    return AsyncSender(engine) if hasattr(engine, "generate") else SyncSender(engine)


class SyncSender:
    """Hands requests to the engine of a `vllm.LLM`.

    Args:
        engine: its `LLMEngine`.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def replace(self, old: str, request: Any, state: Any) -> None:
        """Hands the request over at once."""
        del state
        self._engine.engine_core.add_request(request)
        self._engine.engine_core.abort_requests([old])


class AsyncSender:
    """Hands requests to a server's engine, in tasks of their own: outputs are processed where nothing can wait.

    Args:
        engine: an `AsyncLLM`.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._tasks: set[asyncio.Task[None]] = set()

    def replace(self, old: str, request: Any, state: Any) -> None:
        """Begins to hand the request over. Should that fail, the answer ends in the error."""
        task = asyncio.get_running_loop().create_task(self._replace(old, request, state))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _replace(self, old: str, request: Any, state: Any) -> None:
        core = self._engine.engine_core
        try:
            await core.add_request_async(request)
            # Its client may have gone away meanwhile, and the engine heard so before it heard of this request.
            gone = request.request_id not in self._engine.output_processor.request_states
            await core.abort_requests_async([old, request.request_id] if gone else [old])
        except Exception as error:
            logger.warning("vllm-surgery: %s can't go on: %s", state.external_req_id, error)
            state.queue.put(error)
