# SPDX-License-Identifier: Apache-2.0
"""In the engine's process: every request passes the ledger before its blocks are hashed and it is queued.

Hooks are put on one engine, not on its class: where no slots are asked for, none is there.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from vllm_surgery.engine.requests.choice import PINNED_KEY, pinned, salted
from vllm_surgery.engine.requests.ledger import Change, Ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vllm_surgery.engine.requests.ledger import Fill

LEDGER_METHOD = "vllm_surgery_ledger"
"""The name under which `Ledger.answer` is a method of the engine, for API servers."""

START = "start"
"""The token of the change that fills the slots of a server that starts."""


def attach_ledger(core: Any, count: int, fill: Fill | None) -> Ledger:
    """Gives an engine slots for requests, whose ranks have them already.

    Args:
        core: vLLM's `EngineCore`.
        count: how many.
        fill: what is the default from the start; None for no patch.

    Raises:
        SurgeryError: this model can't have the patch in a slot.
    """
    ledger = Ledger(
        count,
        lambda method, *args: core.model_executor.collective_rpc(method, args=args),
        lambda: _running(core),
    )
    if fill is not None:
        ledger.prepare(START, Change((fill,), shares={fill.offered.name: 1.0}))
        ledger.commit(START)
        ledger.offer, ledger.before = ledger.offer.at_start(), None
    setattr(core, LEDGER_METHOD, ledger.answer)
    core.preprocess_add_request = _preprocessing(core.preprocess_add_request, ledger)
    core.add_request = _adding(core.add_request, ledger)
    return ledger


def _running(core: Any) -> Iterator[str]:
    scheduler = getattr(core, "scheduler", None)  # An engine that starts has none yet.
    for request in list(scheduler.requests.values()) if scheduler is not None else ():
        params = request.sampling_params
        yield ("" if params is None else pinned(params.extra_args)) or ""


def _preprocessing(original: Callable[..., Any], ledger: Ledger) -> Callable[..., Any]:
    """Wraps `EngineCore.preprocess_add_request`, which runs in the thread that takes requests in."""

    def preprocess_add_request(request: Any) -> Any:
        if request.sampling_params is None:
            return original(request)
        try:
            _pin(request, ledger)
            return original(request)
        except BaseException:
            ledger.scheduled(request.request_id)
            raise

    return preprocess_add_request


def _pin(request: Any, ledger: Ledger) -> None:
    digest = ledger.admit(request.request_id, request.sampling_params.extra_args)
    # A copy, since requests may share their parameters where engine and caller share a process.
    params = copy.copy(request.sampling_params)
    params.extra_args = {**(params.extra_args or {}), PINNED_KEY: digest}
    request.sampling_params = params
    request.cache_salt = salted(digest, request.cache_salt)


def _adding(original: Callable[..., Any], ledger: Ledger) -> Callable[..., Any]:
    """Wraps `EngineCore.add_request`, which queues a request, or refuses it."""

    def add_request(request: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(request, *args, **kwargs)
        finally:
            ledger.scheduled(request.request_id)

    return add_request
