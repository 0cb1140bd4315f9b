# SPDX-License-Identifier: Apache-2.0
"""Parser of request bodies: bounded, JSON, with no key beside the protocol's."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from vllm_surgery.client.protocol import SwapRequest
from vllm_surgery.errors import SurgeryError, UsageError, first_problem
from vllm_surgery.patch.document import MAX_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Sequence

MAX_BODY_BYTES = 4 * MAX_BYTES
"""Room for a stack of four of the largest patches that there can be. Real patches have a few kilobytes."""


class MalformedError(SurgeryError):
    """A body that isn't JSON."""


class TooLargeError(SurgeryError):
    """A body that is longer than this server reads."""


class NotJsonError(SurgeryError):
    """A content type other than JSON's."""


def check_type(content_type: str) -> None:
    """Checks for the one content type that a page of another site can't send without this server's consent.

    Raises:
        NotJsonError: it is another one.
    """
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise NotJsonError("the content type must be application/json")


async def read_body(chunks: AsyncIterable[bytes]) -> bytes:
    """Reads the whole body.

    Raises:
        TooLargeError: as soon as more has come than may; the rest isn't read.
    """
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise TooLargeError(f"the body is too long: at most {MAX_BODY_BYTES} bytes are read")
    return bytes(body)


def parse_request(body: bytes) -> SwapRequest:
    """Parses a swap request.

    Raises:
        MalformedError: it isn't JSON.
        UsageError: it is, but says something else than a swap; with the place.
    """
    try:
        data = json.loads(body.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"the body is not JSON: {error}") from None
    try:
        return SwapRequest.model_validate(data)
    except ValidationError as error:
        raise UsageError(_explain(error)) from None


def _unique(members: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(members)
    if len(found) < len(members):
        twice = next(key for number, (key, _) in enumerate(members) if key in dict(members[:number]))
        raise UsageError(f"the key {twice!r} stands twice in one object")
    return found


def _explain(error: ValidationError) -> str:
    steps, reason = first_problem(error)
    place = ".".join(map(str, steps[:2])) or "the body"
    if steps[:1] in {("patches",), ("fill",)} and len(steps) > 1:
        reason = "must be a name or a patch"
    if steps and steps[0] not in SwapRequest.model_fields:
        reason = f"is not a key here; there are {', '.join(SwapRequest.model_fields)}"
    return f"{place}: {reason}"
