# SPDX-License-Identifier: Apache-2.0
"""Rate-limited log lines about requests that loop."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vllm_surgery.engine.server_config import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vllm_surgery.loops import Loop

SECONDS_BETWEEN = 10.0
"""As often as vLLM itself writes how it fares."""

_ID_CHARACTERS = 80
_TEXT_CHARACTERS = 60
"""A client chooses the request's id, and the model the text: neither may fill a log."""


class _Pace:
    """Rate limit: lets one line through in `SECONDS_BETWEEN`, and counts the others."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._next = float("-inf")
        self._left_out = 0

    def allows(self) -> bool:
        """True if a line may be written now."""
        now = self._clock()
        if now < self._next:
            self._left_out += 1
            return False
        self._next = now + SECONDS_BETWEEN
        return True

    def others(self) -> str:
        """Number of lines left out since the last one, as the end of a line."""
        left_out, self._left_out = self._left_out, 0
        return f" (and {left_out} such lines left out)" if left_out else ""


class LoopLog:
    """Writes at most one line of a sort in `SECONDS_BETWEEN`, and in the next one how many were left out.

    Args:
        text_of: makes text of tokens; None where the log mustn't hold what users and the model wrote.
        clock: seconds.
    """

    def __init__(
        self, text_of: Callable[[Sequence[int]], str] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._text_of = text_of
        self._found, self._failed = _Pace(clock), _Pace(clock)

    def found(self, loop: Loop, request_id: str, patch: str) -> None:
        """Logs that a request has run into a loop."""
        if not self._found.allows():
            return
        text = "" if self._text_of is None else f": {self._text_of(loop.motif)[:_TEXT_CHARACTERS]!r}"
        logger.info(
            "vllm-surgery: request %r is in a %s loop since output token %d, period %d, patch %s%s%s",
            request_id[:_ID_CHARACTERS],
            loop.kind,
            loop.onset,
            loop.period,
            patch,
            text,
            self._found.others(),
        )

    def failed(self, error: Exception, request_id: str) -> None:
        """Logs that a detector has failed. The request itself is well."""
        if self._failed.allows():
            logger.warning(
                "vllm-surgery: request %r is not watched for loops any more, because a detector failed: %s: %s%s",
                request_id[:_ID_CHARACTERS],
                type(error).__name__,
                error,
                self._failed.others(),
            )
