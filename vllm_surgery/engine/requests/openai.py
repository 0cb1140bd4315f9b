# SPDX-License-Identifier: Apache-2.0
"""Choosing a patch by a model's name, ``MODEL@NAME``, so that every client, gateway and router of OpenAI's API can.

All handlers ask `_check_model` first, whatever their route; what they do with the request afterwards carries the
choice to the engine.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from vllm_surgery.client.protocol import CHOICE_KEY
from vllm_surgery.engine import touchpoints
from vllm_surgery.engine.offers import OFFERS
from vllm_surgery.engine.requests.admission import board_of
from vllm_surgery.engine.requests.choice import PINNED_KEY, Offer, Offered, UnknownPatchError, pinned, shown
from vllm_surgery.engine.requests.header import given_request_id, note_choice, note_model, noted_model

if TYPE_CHECKING:
    from collections.abc import Callable

MARK = "@"
"""Between the name of a model and that of a patch."""


class _Refused(Exception):  # noqa: N818 - it never leaves this file
    """A request that can't have its patch.

    Attributes:
        answer: for `create_error_response`.
    """

    def __init__(self, message: str, kind: str, status: HTTPStatus, param: str) -> None:
        self.answer = (message, kind, status, param)
        super().__init__(message)


def install_model_names() -> None:
    """From now on models can be named with a patch, in this process, once.

    Raises:
        EngineError: this vLLM lacks a touch point; nothing was changed.
    """
    OFFERS["patches by model name"].check()
    touchpoints.CHECK_MODEL.wrap(check_model_hook)
    touchpoints.SHOW_MODELS.wrap(show_models_hook)
    touchpoints.MODEL_NAME.wrap(model_name_hook)


def check_model_hook(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `BaseServing._check_model`: chooses, and pins what it chose."""

    async def _check_model(self: Any, request: Any) -> Any:
        board = board_of(getattr(self.models, "input_processor", None))
        if board is None:
            return await original(self, request)
        try:
            chosen = _choose(self.models, request, board.offer())
        except _Refused as refused:
            return self.create_error_response(*refused.answer)
        failure = await original(self, request)
        if failure is None and chosen is not None:
            note_choice(chosen)
        return failure

    return _check_model


def _choose(models: Any, request: Any, offer: Offer) -> Offered | None:
    """The request's patch, pinned to it; None for a route that generates nothing."""
    by_model = _by_model(models, request, offer)
    if not _can_carry(request):
        if by_model is not None and by_model.digest:
            raise _refused("this route can't carry a patch", "model")
        return None
    chosen = _one_of(by_model, _by_argument(request, offer)) or _by_pin(request, offer) or offer.default(_key(request))
    if chosen.digest and getattr(request, "use_beam_search", False):
        raise _refused(f"beam search can't carry the patch {chosen.name}; ask for {MARK}none", "use_beam_search")
    _pin(request, chosen)
    return chosen


def _by_model(models: Any, request: Any, offer: Offer) -> Offered | None:
    """Finds the patch that the model's name chooses; the request then has the name without it."""
    named = request.model
    if not named or MARK not in named or _is_known(models, named):
        return None
    base, _, patch = named.rpartition(MARK)
    if not _is_known(models, base):
        return None
    try:
        chosen = offer.named(patch)
    except UnknownPatchError as error:
        message = f"The model {shown(named)} does not exist: {error}"
        raise _Refused(message, "NotFoundError", HTTPStatus.NOT_FOUND, "model") from None
    request.model = base
    note_model(named)
    return chosen


def _is_known(models: Any, name: str) -> bool:
    return bool(models.is_base_model(name)) or name in models.lora_requests


def _by_argument(request: Any, offer: Offer) -> Offered | None:
    given = _arguments(request)
    if CHOICE_KEY not in given:
        return None
    try:
        return offer.named(given[CHOICE_KEY])
    except UnknownPatchError as error:
        raise _refused(str(error), f"vllm_xargs.{CHOICE_KEY}") from None


def _by_pin(request: Any, offer: Offer) -> Offered | None:
    """The choice of whoever rendered the request, which was made at another route."""
    digest = pinned(_arguments(request))
    if digest is None:
        return None
    try:
        return offer.holding(digest)
    except UnknownPatchError as error:
        raise _refused(str(error), PINNED_KEY) from None


def _one_of(by_model: Offered | None, by_argument: Offered | None) -> Offered | None:
    if by_model is not None and by_argument is not None and by_model != by_argument:
        raise _refused(
            f"the model's name chooses {by_model.name}, vllm_xargs {by_argument.name}", f"vllm_xargs.{CHOICE_KEY}"
        )
    return by_model or by_argument


def _refused(message: str, param: str) -> _Refused:
    return _Refused(message, "BadRequestError", HTTPStatus.BAD_REQUEST, param)


def _key(request: Any) -> str:
    """The key by which a default is drawn: the user, so that one stays with one patch, else the request."""
    user = getattr(request, "user", None)
    return f"user:{user}" if user else str(given_request_id() or getattr(request, "request_id", None) or id(request))


def _can_carry(request: Any) -> bool:
    return hasattr(request, "vllm_xargs") or hasattr(request, "sampling_params")


def _arguments(request: Any) -> dict[str, Any]:
    if hasattr(request, "vllm_xargs"):
        return request.vllm_xargs or {}
    return request.sampling_params.extra_args or {}


def _pin(request: Any, chosen: Offered) -> None:
    given = {key: value for key, value in _arguments(request).items() if key != CHOICE_KEY}
    if hasattr(request, "vllm_xargs"):
        request.vllm_xargs = {**given, PINNED_KEY: chosen.digest}
    else:
        request.sampling_params.extra_args = {**given, PINNED_KEY: chosen.digest}


def show_models_hook(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `OpenAIServingModels.show_available_models`: lists every model with every patch."""

    async def show_available_models(self: Any) -> Any:
        models = await original(self)
        board = board_of(getattr(self, "input_processor", None))
        if board is not None:
            names = board.offer().names
            models.data += [_card(card, name) for card in models.data[: len(self.base_model_paths)] for name in names]
        return models

    return show_available_models


def _card(base: Any, patch: str) -> Any:
    return base.model_copy(update={"id": f"{base.id}{MARK}{patch}", "parent": base.id})


def model_name_hook(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `OpenAIServingModels.model_name`: answers name the model as the request did."""

    def model_name(self: Any, lora_request: Any = None) -> str:
        name: str = original(self, lora_request)
        named = noted_model()
        return named if named is not None and named.rpartition(MARK)[0] == name else name

    return model_name
