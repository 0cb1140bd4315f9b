# SPDX-License-Identifier: Apache-2.0
"""Going on with an answer: the request for the rest of it, and vLLM's state of it as it was at the loop's onset.

The rest is a request of its own: its prompt is the old one with the kept tokens, most of whose blocks the prefix cache
still has. To vLLM's client it is the same answer.
"""

from __future__ import annotations

import copy
import hashlib
from typing import TYPE_CHECKING, Any

from vllm_surgery.engine import touchpoints
from vllm_surgery.engine.requests.choice import PINNED_KEY
from vllm_surgery.engine.rescue.actions import PENALTY, TEMPERATURE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm_surgery.engine.rescue.actions import Action


def hindrance(request: Any) -> str | None:
    """Why the answer to a request can't be continued; None where it can.

    Args:
        request: vLLM's `EngineCoreRequest`.
    """
    params = request.sampling_params
    hindrances = {
        "a grammar's state would be lost": params.structured_outputs is not None,
        "log-probabilities of a prompt can't be told apart from those of kept tokens": (
            params.prompt_logprobs is not None or params.logprob_token_ids is not None
        ),
        "its input is streamed": request.resumable,
        "a prompt of embeddings has no tokens": request.prompt_token_ids is None or request.prompt_embeds is not None,
        "its images and sounds may be gone": bool(request.mm_features),
        "a budget for thinking counts from the answer's beginning": params.thinking_token_budget is not None,
        "another server computed its prompt": "kv_transfer_params" in (params.extra_args or {}),
    }
    return next((reason for reason, hinders in hindrances.items() if hinders), None)


def continuation(request: Any, kept: Sequence[int], actions: Sequence[Action], digest: str | None) -> Any:
    """The request for the rest of an answer.

    Args:
        request: the first one, as it was handed to the engine.
        kept: tokens of the answer that stay.
        actions: under which it goes on: all that were tried, the newest last. Earlier ones stay in force.
        digest: of the patch that it goes on under; None: the one that it has.

    Returns:
        An `EngineCoreRequest`, whose id is new.
    """
    params = copy.copy(request.sampling_params)
    vars(params).pop("sampling_type", None)  # It is worked out once, from the temperature.
    params.max_tokens -= len(kept)
    params.min_tokens = max(0, params.min_tokens - len(kept))
    for action in actions:
        if action.name == PENALTY:
            params.repetition_penalty = max(params.repetition_penalty, action.value)
        elif action.name == TEMPERATURE:
            if params.seed is None and not params.temperature:
                params.seed = _seed_of(request)
            params.temperature = max(params.temperature, action.value)
    if params.seed is not None:
        params.seed = _in_64_bits(params.seed + len(actions))  # The same seed would draw as it did at the beginning.
    if digest is not None:
        params.extra_args = {**(params.extra_args or {}), PINNED_KEY: digest}
    rest = copy.copy(request)
    rest.sampling_params = params
    rest.prompt_token_ids = [*request.prompt_token_ids, *kept]
    rest.request_id = f"{request.request_id}.{len(actions)}"
    return rest


def _seed_of(request: Any) -> int:
    """A seed that only depends on the prompt, so that greedy requests are answered the same each time."""
    ids = ",".join(map(str, request.prompt_token_ids))
    return int.from_bytes(hashlib.sha256(ids.encode()).digest()[:4], "big")


def _in_64_bits(seed: int) -> int:
    """A seed that vLLM can hold: the one after the largest is the smallest."""
    return (seed + 2**63) % 2**64 - 2**63


def is_streamed(state: Any) -> bool:
    """True for a request whose client has seen what there is of its answer."""
    return bool(state.output_kind != touchpoints.OUTPUT_KINDS.get().FINAL_ONLY)


class AnswerState:
    """vLLM's state of a request that is being answered.

    Args:
        processor: the `OutputProcessor` that holds it.
        state: a `RequestState` that generates text.
        request: the one that it was made from.
    """

    def __init__(self, processor: Any, state: Any, request: Any) -> None:
        self._processor, self._state, self._request = processor, state, request

    @property
    def token_ids(self) -> list[int]:
        """The answer so far."""
        return list(self._state.detokenizer.output_token_ids)

    def can_be_cut(self) -> bool:
        """True if all that is kept of an answer can be cut at any token."""
        return not (self._state.routed_experts_chunks or self._state.sampling_mask_chunks)

    def cut(self, kept: Sequence[int]) -> None:
        """Forgets everything after the first tokens of the answer."""
        state, params = self._state, self._request.sampling_params
        tokenizer = self._processor.tokenizer if params.detokenize else None
        detokenizer = touchpoints.DETOKENIZER.get()(tokenizer, self._request)
        detokenizer.update(list(kept), False)
        detokenizer.get_next_output_text(False, True)  # A stream that was held back goes on after it.
        state.detokenizer = detokenizer
        state.sent_tokens_offset = len(kept)
        _cut_logprobs(state.logprobs_processor, len(kept))
        first, later = state.weight_version_starts[:1], state.weight_version_starts[1:]
        state.weight_version_starts = [*first, *(each for each in later if each[1] < len(kept))]

    def rename(self, request_id: str) -> None:
        """From now on outputs of the request with this id belong to the answer."""
        processor, state = self._processor, self._state
        old = state.request_id
        processor.request_states[request_id] = processor.request_states.pop(old)
        ids: list[str] = processor.external_req_ids[state.external_req_id]
        ids[ids.index(old)] = request_id
        if state.parent_req is not None:
            unfinished: set[str] = state.parent_req.child_requests
            unfinished.symmetric_difference_update({old, request_id})
        elif state.queue is not None:
            state.queue.request_id = request_id  # By which a client that goes away is known.
        processor.lora_states.request_finished(old, state.lora_name)
        state.request_id = request_id

    def end(self, reason: Any, stop_reason: str | None, iteration_stats: Any) -> Any:
        """Ends the answer as it is.

        Args:
            reason: vLLM's `FinishReason`.
            stop_reason: what its client is told beside it.
            iteration_stats: as vLLM gave them.

        Returns:
            The last `RequestOutput`, where nobody waits for it at a queue; else None.
        """
        processor, state = self._processor, self._state
        output = state.make_request_output([], None, reason, stop_reason)
        touchpoints.FINISH_REQUEST.of(processor)(state)
        touchpoints.COUNT_FINISHED.of(processor)(state, reason, iteration_stats)
        if processor.tracing_enabled and iteration_stats is not None:
            touchpoints.TRACE_FINISHED.of(processor)(self._request, state, iteration_stats)
        if output is None or state.queue is None:
            return output
        state.queue.put(output)
        return None


def _cut_logprobs(processor: Any, count: int) -> None:
    if processor.logprobs is None:
        return
    processor.logprobs = processor.logprobs[:count]
    # Of each position the sampled token comes first.
    processor.cumulative_logprob = sum(next(iter(each.values())).logprob for each in processor.logprobs)
