# SPDX-License-Identifier: Apache-2.0
"""Streams that are handed on some tokens late, so that a loop's beginning can be taken back before a client sees it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm_surgery.engine import touchpoints
from vllm_surgery.engine.rescue.continuation import is_streamed

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class _Waiting:
    """An output that isn't handed on yet, and how many tokens the answer has with it."""

    output: Any
    tokens: int


class HeldBackQueue:
    """Stands in the place of a streamed request's queue and hands on what is put there `tokens` tokens late.

    All that waits is handed on when the answer ends, so nothing is lost and its end comes no later.

    Args:
        queue: vLLM's `RequestOutputCollector` of the request.
        tokens: how many the client is behind.
        cumulative: whether each output has all tokens so far, not only the new ones.
    """

    def __init__(self, queue: Any, tokens: int, *, cumulative: bool) -> None:
        self._queue, self._tokens, self._cumulative = queue, tokens, cumulative
        self._waiting: deque[_Waiting] = deque()
        self._come = 0
        self._sent = 0

    @property
    def request_id(self) -> str:
        """The request that the answer belongs to."""
        return str(self._queue.request_id)

    @request_id.setter
    def request_id(self, request_id: str) -> None:
        self._queue.request_id = request_id

    def put(self, output: Any) -> None:
        """Takes an output, or an error, as vLLM's queue does."""
        completions = getattr(output, "outputs", None)
        if not isinstance(completions, list) or any(each.finish_reason is not None for each in completions):
            self._hand_on(0)
            self._queue.put(output)
            return
        count = sum(len(each.token_ids) for each in completions)
        self._come = count if self._cumulative else self._come + count
        self._waiting.append(_Waiting(output, self._come))
        self._hand_on(self._tokens)

    def _hand_on(self, behind: int) -> None:
        while self._waiting and self._waiting[0].tokens <= self._come - behind:
            first = self._waiting.popleft()
            self._sent = first.tokens
            self._queue.put(first.output)

    def take_back(self, onset: int) -> int:
        """Drops outputs with tokens after the first `onset` ones, as far as they weren't handed on.

        Returns:
            How many tokens of the answer stay.
        """
        while self._waiting and self._waiting[-1].tokens > onset:
            self._waiting.pop()
        self._come = self._waiting[-1].tokens if self._waiting else self._sent
        return self._come


def hold_back(state: Any, tokens: int) -> None:
    """Holds the stream of a request back, where it has one.

    Args:
        state: vLLM's, of the request.
        tokens: how many; 0 for none.
    """
    if tokens and state.queue is not None and is_streamed(state):
        cumulative = state.output_kind == touchpoints.OUTPUT_KINDS.get().CUMULATIVE
        state.queue = HeldBackQueue(state.queue, tokens, cumulative=cumulative)


def can_be_taken_back(state: Any) -> bool:
    """True for a request whose client hasn't seen the end of what there is of its answer."""
    return not is_streamed(state) or _held_back(state) is not None


def _held_back(state: Any) -> HeldBackQueue | None:
    return state.queue if isinstance(state.queue, HeldBackQueue) else None


def kept_tokens(state: Any, tokens: Sequence[int], onset: int) -> list[int]:
    """The tokens of a looping answer that stay: all that its client has seen, and those before the loop.

    Args:
        state: vLLM's, of the request.
        tokens: the answer so far.
        onset: where the loop begins.
    """
    held = _held_back(state)
    if held is not None:
        return list(tokens[: held.take_back(onset)])
    return list(tokens if is_streamed(state) else tokens[:onset])
