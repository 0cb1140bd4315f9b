# SPDX-License-Identifier: Apache-2.0
"""In an API server's process or an offline engine's: every request gets its patch before it is handed to the engine."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from vllm_surgery.client.protocol import CHOICE_KEY
from vllm_surgery.engine import touchpoints
from vllm_surgery.engine.requests.board import BOARD, Board, launcher, shared_file
from vllm_surgery.engine.requests.choice import (
    PINNED_KEY,
    UNPATCHED,
    Offer,
    Offered,
    UnknownPatchError,
    pinned,
)
from vllm_surgery.engine.requests.content import digest_of, name_of
from vllm_surgery.engine.requests.header import note_choice, noted_choice
from vllm_surgery.engine.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_surgery.patch.patch_set import PatchSet


REQUEST_PATCH = "_vllm_surgery_patch"
"""The attribute of vLLM's state of a request that says the id of its patch, if requests have patches of their own."""


def input_processor_hook(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `InputProcessor.__init__`. Where no slots are asked for, the processor is as vLLM made it."""

    def __init__(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        original(self, vllm_config, *args, **kwargs)
        settings = Settings.of(vllm_config.additional_config)
        if settings.slots:
            processes = getattr(vllm_config.parallel_config, "_api_process_count", 1)
            setattr(self, BOARD, Board(offer_at_start(settings.load()), shared_file(processes, launcher)))
            after_inputs(self, _admitting(getattr(self, BOARD)))

    return __init__


def offered(patches: PatchSet) -> Offered:
    """Makes the choice that a patch set is to requests; the empty one is no patch."""
    return Offered(name_of(patches), patches.id, digest_of(patches)) if patches else UNPATCHED


def offer_at_start(patches: PatchSet) -> Offer:
    """Makes the offer of a server that was started with these patches."""
    if not patches:
        return Offer()
    item = offered(patches)
    return Offer({item.name: item}, {item.name: 1.0})


def after_inputs(processor: Any, look: Callable[[Any, str], None]) -> None:
    """From now on each request that an `InputProcessor` makes is looked at before anybody else has it.

    Args:
        processor: of one engine, whose class stays as it is.
        look: is given an `EngineCoreRequest` and the id that its caller gave; it may change the one, or raise.
    """
    make: Callable[..., Any] = processor.process_inputs
    make_later: Callable[..., Any] | None = getattr(processor, "process_inputs_async", None)

    def process_inputs(request_id: str, *args: Any, **kwargs: Any) -> Any:
        request = make(request_id, *args, **kwargs)
        look(request, request_id)
        return request

    processor.process_inputs = process_inputs
    if make_later is None:
        return

    async def process_inputs_async(request_id: str, *args: Any, **kwargs: Any) -> Any:
        request = await make_later(request_id, *args, **kwargs)
        look(request, request_id)
        return request

    processor.process_inputs_async = process_inputs_async  # For raw prompts. vLLM's goes past `processor`'s own method.


def _admitting(board: Board) -> Callable[[Any, str], None]:
    def admit(request: Any, request_id: str) -> None:
        if request.sampling_params is not None:
            _pin(request, request_id, board.offer())

    return admit


def _pin(request: Any, request_id: str, offer: Offer) -> None:
    given = request.sampling_params.extra_args or {}
    try:
        chosen = _chosen(given, request_id, offer)
    except UnknownPatchError as error:
        raise refusal(str(error), given.get(CHOICE_KEY)) from None
    if chosen.digest and request.resumable:
        raise refusal("a session whose input is streamed can't have a patch of its own", chosen.name)
    # A copy, since callers that ask vLLM not to copy parameters share theirs among requests.
    params = copy.copy(request.sampling_params)
    params.extra_args = {key: value for key, value in given.items() if key != CHOICE_KEY} | {PINNED_KEY: chosen.digest}
    request.sampling_params = params
    note_choice(chosen)


def _chosen(given: dict[str, Any], request_id: str, offer: Offer) -> Offered:
    digest = pinned(given)
    if digest is not None:
        return offer.holding(digest)
    if CHOICE_KEY in given:
        return offer.named(given[CHOICE_KEY])
    # One HTTP request may become several: the beams of a search, a tool's turns.
    return noted_choice() or offer.default(request_id)


def refusal(reason: str, value: object, parameter: str = CHOICE_KEY) -> Exception:
    """Makes the error that vLLM answers with HTTP status 400."""
    error: Exception = touchpoints.VALIDATION_ERROR.get()(reason, parameter=parameter, value=value)
    return error


def patch_id(processor: Any, request: Any) -> str | None:
    """The id of the patch that an admitted request has; None where requests have none of their own."""
    board, params = board_of(processor), request.sampling_params
    digest = None if board is None or params is None else pinned(params.extra_args)
    if board is None or digest is None:
        return None
    try:
        return board.offer().holding(digest).id
    except UnknownPatchError:  # It left a moment ago, and the engine will refuse the request.
        return None


def board_of(processor: Any) -> Board | None:
    """Finds this process's board; None where this server has no slots."""
    found: Board | None = getattr(processor, BOARD, None)
    return found
