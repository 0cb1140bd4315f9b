# SPDX-License-Identifier: Apache-2.0
"""Parser of request bodies: bounded, JSON, with no key beside the protocol's."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from vllm_surgery.client.protocol import MOST_SLOTS, SwapRequest
from vllm_surgery.errors import SurgeryError, UsageError, first_problem, is_text, one_line
from vllm_surgery.patch.document import MAX_BYTES
from vllm_surgery.patch.patch_set import MOST_PATCHES

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Sequence

MAX_BODY_BYTES = 4 * MAX_BYTES
"""Room for a stack of four of the largest patches that there can be. Real patches have a few kilobytes."""


MOST_ITEMS = {"patches": MOST_PATCHES, "fill": MOST_SLOTS, "free": MOST_SLOTS, "default": MOST_SLOTS + 1}
"""The longest list under each key."""

_WORD_LIMIT = 80


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
    _check_size(data)
    try:
        return SwapRequest.model_validate(data)
    except ValidationError as error:
        raise UsageError(_explain(error)) from None


def _unique(members: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in members:
        if key in found:
            raise UsageError(f"the key {one_line(key, _WORD_LIMIT)!r} stands twice in one object")
        found[key] = value
    return found


def _check_size(data: object) -> None:
    """Checks keys and lengths, of which pydantic would collect every single error, and that names are text.

    Raises:
        UsageError: a key that isn't the protocol's, a list that is too long, or a name that no bytes stand for.
    """
    for key, value in data.items() if isinstance(data, dict) else ():
        if key not in SwapRequest.model_fields:
            known = ", ".join(SwapRequest.model_fields)
            raise UsageError(f"{one_line(key, _WORD_LIMIT)}: is not a key here; there are {known}")
        most = MOST_ITEMS.get(key)
        if most is not None and isinstance(value, list | dict) and len(value) > most:
            raise UsageError(f"{key}: {len(value)} items; at most {most}")
        for name in value if isinstance(value, list | dict) else [value]:
            if isinstance(name, str) and not is_text(name):
                raise UsageError(f"{key}: {one_line(name, _WORD_LIMIT)} is no text: it has half a surrogate pair")


def _explain(error: ValidationError) -> str:
    steps, reason = first_problem(error)
    place = ".".join(map(str, steps[:2])) or "the body"
    if steps[:1] in {("patches",), ("fill",)} and len(steps) > 1:
        reason = "must be a name or a patch"
    return f"{place}: {reason}"
