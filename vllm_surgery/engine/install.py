# SPDX-License-Identifier: Apache-2.0
"""Installation of the hooks into a process of vLLM's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm_surgery.engine import touchpoints
from vllm_surgery.engine.capture.worker import CAPTURE_METHOD, capture
from vllm_surgery.engine.load.compile_cache import compute_hash_hook
from vllm_surgery.engine.load.preflight import preflight_hook
from vllm_surgery.engine.load.ranks import verify_hook
from vllm_surgery.engine.load.worker import load_hook
from vllm_surgery.engine.monitoring.hooks import install_watching
from vllm_surgery.engine.offers import loading_lost
from vllm_surgery.engine.requests.admission import input_processor_hook
from vllm_surgery.engine.requests.worker import FILL_METHOD, HOLD_METHOD, SLOTS_METHOD, fill_slot, hold, report_slots
from vllm_surgery.engine.rescue.hooks import attach_rescue
from vllm_surgery.engine.server_config import logger
from vllm_surgery.engine.settings import Settings
from vllm_surgery.engine.swap.worker import REPORT_METHOD, STEP_METHOD, report, step
from vllm_surgery.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable


def install() -> None:
    """Installs the hooks into this process. Idempotent.

    Raises:
        EngineError: this vLLM lacks a touch point without which not even a server with patches could be refused.
    """
    reason = loading_lost()
    if reason is None:
        _install_loading()
    else:
        _refuse_patches(reason)
    install_watching(attach_rescue)


def _install_loading() -> None:
    touchpoints.CREATE_CONFIG.wrap(preflight_hook)
    if touchpoints.CONFIG_HASH.there:  # Where it isn't, no compiled server with masks or slots is started.
        touchpoints.CONFIG_HASH.wrap(compute_hash_hook)
    touchpoints.LOAD_MODEL.wrap(load_hook)
    touchpoints.ENGINE_READY.wrap(verify_hook)
    worker = touchpoints.WORKER_BASE.get()
    setattr(worker, REPORT_METHOD, report)
    setattr(worker, STEP_METHOD, step)
    setattr(worker, CAPTURE_METHOD, capture)
    setattr(worker, FILL_METHOD, fill_slot)
    setattr(worker, HOLD_METHOD, hold)
    setattr(worker, SLOTS_METHOD, report_slots)
    if touchpoints.INPUT_PROCESSOR.there:  # Where it isn't, no server with slots is started.
        touchpoints.INPUT_PROCESSOR.wrap(input_processor_hook)


def _refuse_patches(reason: str) -> None:
    """Lets servers that ask for no patch start, and no others."""
    if not touchpoints.CREATE_CONFIG.there:
        raise EngineError(reason)
    logger.warning("vllm-surgery: no patch can be applied: %s", reason)

    def refusing(original: Callable[..., Any]) -> Callable[..., Any]:
        def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
            config = original(self, *args, **kwargs)
            if Settings.of(config.additional_config).asks_for_patches:
                raise EngineError(f"no patch can be applied: {reason}")
            return config

        return create_engine_config

    touchpoints.CREATE_CONFIG.wrap(refusing)
