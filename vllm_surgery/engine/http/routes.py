# SPDX-License-Identifier: Apache-2.0
"""HTTP routes, and the status of each error on them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from vllm_surgery.client.protocol import (
    PAGE_PATH,
    PATCHES_PATH,
    STATE_PATH,
    PatchListing,
    ServerState,
    SlotsReport,
    SwapReport,
    SwapRequest,
)
from vllm_surgery.engine import tracing
from vllm_surgery.engine.http.access import Access, Caller, ForbiddenError, UnauthorizedError
from vllm_surgery.engine.http.body import (
    MalformedError,
    NotJsonError,
    TooLargeError,
    check_type,
    parse_request,
    read_body,
)
from vllm_surgery.engine.http.disclosure import without_folders
from vllm_surgery.engine.http.page import page
from vllm_surgery.errors import (
    CannotSwapError,
    CheckpointError,
    ConflictError,
    EngineError,
    MixedWeightsError,
    PatchError,
    SurgeryError,
    SwapFailedError,
    UsageError,
)

if TYPE_CHECKING:
    from starlette.datastructures import State

    from vllm_surgery.engine.http.service import SurgeryService

SERVICE, ACCESS = "vllm_surgery_service", "vllm_surgery_access"
"""Attributes of the web application's state."""

STATUS: dict[type[SurgeryError], int] = {
    MalformedError: 400,
    UnauthorizedError: 401,
    ForbiddenError: 403,
    ConflictError: 409,
    TooLargeError: 413,
    NotJsonError: 415,
    UsageError: 422,
    CheckpointError: 422,
    PatchError: 422,
    CannotSwapError: 501,
    SwapFailedError: 500,
    MixedWeightsError: 500,
    EngineError: 500,
    SurgeryError: 422,
}
"""The HTTP status of each error; a type that isn't here has that of its base."""


class ErrorDetail(BaseModel):
    """Description of an error, in the form of vLLM's own routes.

    Attributes:
        message: one line.
        type: the name of the error.
        param: always null.
        code: the HTTP status.
    """

    message: str
    type: str
    param: str | None = None
    code: int


class ErrorAnswer(BaseModel):
    """Response of every route that failed."""

    error: ErrorDetail


def _errors(**descriptions: str) -> dict[int | str, dict[str, Any]]:
    """Error responses for the API's description, such as ``_401="no API key"``."""
    return {int(name[1:]): {"model": ErrorAnswer, "description": text} for name, text in descriptions.items()}


_ENGINE_ERRORS = _errors(
    _401="The API key is missing or another.",
    _500="The engine's workers don't answer, or don't agree.",
    _501="This server has no engine to operate on.",
)
_SWAP_ERRORS = _errors(
    _400="The body is not JSON. Nothing was changed.",
    _401="The API key is missing or another. Nothing was changed.",
    _403="The caller may not swap here, or may not send patches. Nothing was changed.",
    _409="Another swap runs, the engine sleeps, all slots are in use, or `if_epoch` is stale. Nothing was changed.",
    _413="The body is too long. Nothing was changed.",
    _415="The content type is not application/json. Nothing was changed.",
    _422="The patches are refused: unknown, wrong, or not for this model. Nothing was changed.",
    _500="The swap failed. `SwapFailedError`: it was undone. `MixedWeightsError`: the engine was stopped.",
    _501="This server can't swap; the message says why.",
)
# The body is read by hand, since a framework would read all of it before anything could be refused.
_SWAP_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": SwapRequest.model_json_schema()}},
    }
}

router = APIRouter(tags=["vllm-surgery"])


@router.get(STATE_PATH, summary="What is served", responses=_ENGINE_ERRORS)
async def get_state(request: Request) -> ServerState:
    """The active patches, what the followed files ask for, and whether patches can be swapped."""
    _access(request).check_read(_caller(request))
    return await _service(request).state()


@router.get(PATCHES_PATH, summary="Patches by name", responses=_ENGINE_ERRORS)
async def get_patches(request: Request) -> PatchListing:
    """Patches in the server's folders. A broken file is listed with its error."""
    _access(request).check_read(_caller(request))
    return await _service(request).listing()


@router.put(STATE_PATH, summary="Swap patches", responses=_SWAP_ERRORS, openapi_extra=_SWAP_BODY)
async def put_state(request: Request) -> SwapReport | SlotsReport:
    """From the answer on the model is served with these patches and no others; an empty list is the model as it is.

    Where the server has slots, `patches` become the default of requests that choose none, and `fill`, `free` and
    `default` change what requests can choose.

    `check` does all that comes before the first change, and `undo` takes the last change back: together they let a
    caller change many servers, all or none.

    All of it is done or none. A caller that goes away doesn't stop a swap that has begun.
    """
    _access(request).check(_caller(request))
    check_type(request.headers.get("content-type", ""))
    service = _service(request)
    try:
        body = await read_body(request.stream())
    except ClientDisconnect:
        raise MalformedError("the connection ended in the middle of the body") from None
    # In a thread: a long body takes a second, in which others' tokens must go out.
    asked = await asyncio.to_thread(parse_request, body)
    with tracing.caused_by(request.headers):
        return await service.put(asked)


@router.get(PAGE_PATH, include_in_schema=False)
async def get_page() -> HTMLResponse:
    """A page for people, which asks the routes above and ``/metrics``. Without data, so without a key."""
    return page()


async def answer_error(_request: Request, error: Exception) -> JSONResponse:
    """Turns a `SurgeryError` into a response."""
    code = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    detail = ErrorDetail(message=without_folders(str(error)), type=type(error).__name__, code=code)
    return JSONResponse(ErrorAnswer(error=detail).model_dump(), code)


def _service(request: Request) -> SurgeryService:
    state: State = request.app.state
    service: SurgeryService | None = getattr(state, SERVICE, None)
    if service is None:
        raise CannotSwapError("this server has no engine to operate on")
    return service


def _access(request: Request) -> Access:
    access: Access = getattr(request.app.state, ACCESS)
    return access


def _caller(request: Request) -> Caller:
    return Caller(request.client.host if request.client else None, request.headers.items())
