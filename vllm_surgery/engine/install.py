# SPDX-License-Identifier: Apache-2.0
"""Installation of the hooks into a process of vLLM's."""

from __future__ import annotations

from vllm_surgery.engine import touchpoints
from vllm_surgery.engine.capture.worker import CAPTURE_METHOD, capture
from vllm_surgery.engine.load.compile_cache import compute_hash_hook
from vllm_surgery.engine.load.preflight import preflight_hook
from vllm_surgery.engine.load.ranks import verify_hook
from vllm_surgery.engine.load.worker import load_hook
from vllm_surgery.engine.monitoring.hooks import install_watching
from vllm_surgery.engine.requests.admission import input_processor_hook
from vllm_surgery.engine.requests.worker import FILL_METHOD, HOLD_METHOD, SLOTS_METHOD, fill_slot, hold, report_slots
from vllm_surgery.engine.rescue.hooks import attach_rescue
from vllm_surgery.engine.swap.worker import REPORT_METHOD, STEP_METHOD, report, step


def install() -> None:
    """Installs the hooks into this process. Idempotent.

    Raises:
        EngineError: this vLLM lacks a touch point; nothing was changed.
    """
    for point in touchpoints.FOR_LOADING:
        point.get()
    touchpoints.CREATE_CONFIG.wrap(preflight_hook)
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
    install_watching(attach_rescue)
