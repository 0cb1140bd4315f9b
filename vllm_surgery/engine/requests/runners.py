# SPDX-License-Identifier: Apache-2.0
"""Hooks on vLLM's two model runners, which know the order of a step's tokens.

Hooks are put on one runner, not on its class: where no slots are asked for, none is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from vllm_surgery.engine import touchpoints
from vllm_surgery.engine.requests.choice import pinned
from vllm_surgery.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from vllm_surgery.engine.requests.tokens import TokenSlots
    from vllm_surgery.engine.touchpoints import TouchPoint

    SlotOf: TypeAlias = Callable[[str], int]
    """The slot of a digest."""

Version: TypeAlias = Literal["V1", "V2"]
"""Of vLLM's model runners."""

_HOOKS: dict[Version, tuple[TouchPoint, ...]] = {"V1": touchpoints.FOR_V1_SLOTS, "V2": touchpoints.FOR_V2_SLOTS}
"""The methods that are wrapped, by which each is told."""


def version_of_runner(runner: Any) -> Version:
    """Tells which of vLLM's model runners this is.

    Raises:
        EngineError: neither.
    """
    for version, points in _HOOKS.items():
        if all(hasattr(runner, point.name) for point in points):
            return version
    raise EngineError(f"{type(runner).__name__} is no model runner that is known, so requests can't have slots")


def install_runner(runner: Any, tokens: TokenSlots, slot_of: SlotOf) -> Version:
    """From now on `tokens` is told of every step.

    Args:
        runner: vLLM's model runner.
        tokens: whose token is whose.
        slot_of: the slot of a digest, asked again at each step.

    Raises:
        EngineError: this runner isn't known.
    """
    version = version_of_runner(runner)
    if version == "V1":
        _wrap(runner, touchpoints.V1_INPUTS, _v1_step(runner, tokens, slot_of))
        return version
    digests: dict[str, str] = {}
    _wrap(runner, touchpoints.V2_ADD, _v2_added(digests))
    _wrap(runner, touchpoints.V2_INPUTS, _v2_step(digests, tokens, slot_of))
    _wrap(runner, touchpoints.V2_REMOVE, _v2_removed(digests))
    return version


def _wrap(runner: Any, point: TouchPoint, after: Callable[..., None]) -> None:
    original = point.of(runner)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        after(result, *args, **kwargs)
        return result

    setattr(runner, point.name, wrapped)


def _v1_step(runner: Any, tokens: TokenSlots, slot_of: SlotOf) -> Callable[..., None]:
    requests = runner.requests

    def after(_result: Any, _scheduled: Any, num_scheduled_tokens: NDArray[np.integer]) -> None:
        params = (requests[request].sampling_params for request in runner.input_batch.req_ids)
        digests = ("" if found is None else pinned(found.extra_args) or "" for found in params)
        tokens.step(_slots(digests, slot_of), num_scheduled_tokens)

    return after


def _v2_added(digests: dict[str, str]) -> Callable[..., None]:
    """The only sight of a request's parameters; requests that resume after a preemption come as new ones."""

    def after(_result: Any, scheduled: Any) -> None:
        for request in scheduled.scheduled_new_reqs:
            params = request.sampling_params
            digests[request.req_id] = "" if params is None else pinned(params.extra_args) or ""

    return after


def _v2_step(digests: dict[str, str], tokens: TokenSlots, slot_of: SlotOf) -> Callable[..., None]:
    def after(batch: Any, *_: Any, **__: Any) -> None:
        here = (digests.get(request, "") for request in batch.req_ids)
        tokens.step(_slots(here, slot_of), batch.num_scheduled_tokens)

    return after


def _v2_removed(digests: dict[str, str]) -> Callable[..., None]:
    def after(_result: Any, request: str) -> None:
        digests.pop(request, None)

    return after


def _slots(digests: Iterable[str], slot_of: SlotOf) -> NDArray[np.int64]:
    return np.fromiter((slot_of(digest) for digest in digests), dtype=np.int64)
