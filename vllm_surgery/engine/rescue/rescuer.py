# SPDX-License-Identifier: Apache-2.0
"""Rescuer of one engine's answers, in the API process: after each step it looks at those that loop, at no others."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from vllm_surgery.engine import touchpoints, tracing
from vllm_surgery.engine.requests.admission import REQUEST_PATCH
from vllm_surgery.engine.requests.choice import UnknownPatchError, pinned
from vllm_surgery.engine.rescue.actions import PATCH, STOP, Action
from vllm_surgery.engine.rescue.confirmation import AT_THE_END, TOKENS, lasting, read_again_at, seems_poor
from vllm_surgery.engine.rescue.continuation import AnswerState, continuation, hindrance
from vllm_surgery.engine.rescue.held_back import can_be_taken_back, hold_back, kept_tokens
from vllm_surgery.engine.rescue.metrics import CUT, ENDED, LOOPED_AGAIN
from vllm_surgery.engine.server_config import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vllm_surgery.engine.monitoring.monitor import LoopMonitor
    from vllm_surgery.engine.monitoring.request import WatchedAnswer
    from vllm_surgery.engine.requests.choice import Offer, Offered
    from vllm_surgery.engine.rescue.actions import Policy
    from vllm_surgery.engine.rescue.metrics import RescueMetrics
    from vllm_surgery.loops import Loop

_RESCUE = "_vllm_surgery_rescue"
"""Where a request's `_Rescue` lies on vLLM's state of it."""

_MOST_EXPECTED = 256

_BROKEN_OFF = ("length", "abort")


class Sender(Protocol):
    """The way to the engine."""

    def replace(self, old: str, request: Any, state: Any) -> None:
        """Hands over a request, then ends another in whose place it is: so a slot that both use isn't freed between."""


@dataclass(frozen=True)
class _Done:
    loop: Loop
    patch: str
    action: Action
    tokens: int
    began: int = field(default_factory=tracing.now)


@dataclass(frozen=True)
class _Step:
    """One engine step as vLLM processed it.

    Attributes:
        result: of `OutputProcessor.process_outputs`.
        iteration_stats: as vLLM gave them.
        held: states of requests whose budget has ended and whose end was held back, by request.
    """

    result: Any
    iteration_stats: Any
    held: Mapping[str, Any]


@dataclass
class _Rescue:
    """What is known of one request, for its rescues.

    Attributes:
        request: as it was handed to the engine.
        policy: of this request.
        done: what was done to its answer, in turn.
        since: how many tokens the answer had when that was last done.
        digest: of the patch that it goes on under, where that changed.
        left: whether nothing more can be done.
        read_at: the length from which on the answer is read a second time.
    """

    request: Any
    policy: Policy
    done: list[_Done] = field(default_factory=list)
    since: int = 0
    digest: str | None = None
    left: bool = False
    read_at: int = 0

    @property
    def tried(self) -> list[Action]:
        """Actions under which the answer went on."""
        return [done.action for done in self.done]


class Rescuer:
    """Rescues the answers of one engine. None of its methods raises.

    Args:
        processor: vLLM's `OutputProcessor`.
        monitor: that watches it.
        sender: to its engine.
        metrics: what to count in.
        offer: what requests can choose now; None where there are no slots.

    Attributes:
        on: false once something has failed inside; answers are then left as they are.
    """

    def __init__(
        self,
        processor: Any,
        monitor: LoopMonitor,
        sender: Sender,
        metrics: RescueMetrics,
        offer: Callable[[], Offer] | None,
    ) -> None:
        self._processor, self._monitor, self._sender = processor, monitor, sender
        self._metrics, self._offer = metrics, offer
        self._expected: set[tuple[str, str]] = set()
        self._reasons, self._events = touchpoints.FINISH_REASONS.get(), touchpoints.EVENT_TYPES.get()
        self.on = True

    def admit(self, request: Any, policy: Policy, behind: int = 0) -> None:
        """Notes a request that was just handed to `OutputProcessor.add_request`.

        Args:
            request: as it was handed over.
            policy: of this request.
            behind: how many tokens its client is behind, if its answer is streamed and could be continued.
        """
        state = self._processor.request_states.get(request.request_id)
        if state is None or hasattr(state, _RESCUE):  # A further part of an input that is streamed: no prompt.
            return
        setattr(state, _RESCUE, None)
        if policy.actions:
            setattr(state, _RESCUE, _Rescue(request, policy))
            self._expect(self._monitor.patch_of(state), policy)
            if behind and not policy.only_stops and hindrance(request) is None:
                hold_back(state, behind)

    def _expect(self, patch: str, policy: Policy) -> None:
        """Tells the metrics once of what may come."""
        told = (patch, str(policy))
        if told not in self._expected:
            if len(self._expected) >= _MOST_EXPECTED:
                self._expected.clear()
            self._expected.add(told)
            self._metrics.expect(patch, policy)

    def hold(self, outputs: Sequence[Any]) -> dict[str, Any]:
        """Keeps answers open whose budget ends now, perhaps in a loop, before the outputs of a step are processed.

        Not of streams that aren't held back, since what a client has seen can't be taken back. `step` has to follow.

        Args:
            outputs: `EngineCoreOutput`s, from which the reason to finish is taken.

        Returns:
            vLLM's states of these requests, by request.
        """
        held: dict[str, Any] = {}
        try:
            for output in outputs if self.on else ():
                if output.events and self._goes_on(output.request_id):
                    # To vLLM it was queued once, when the answer began.
                    output.events = [event for event in output.events if event.type != self._events.QUEUED]
                if output.finish_reason == self._reasons.LENGTH and (state := self._to_hold(output.request_id)):
                    held[output.request_id] = state
                    output.finish_reason = None
        except Exception:
            self._fail()
        return held

    def _goes_on(self, request_id: str) -> bool:
        rescue: _Rescue | None = getattr(self._processor.request_states.get(request_id), _RESCUE, None)
        return rescue is not None and bool(rescue.done)

    def _to_hold(self, request_id: str) -> Any:
        state = self._processor.request_states.get(request_id)
        if state is None or not can_be_taken_back(state) or not self._may_act(state) or not self._may_loop(state):
            return None
        return state

    def _may_loop(self, state: Any) -> bool:
        return bool(self._monitor.running(state)) or seems_poor(state.detokenizer.output_token_ids)

    def step(self, result: Any, iteration_stats: Any, held: Mapping[str, Any]) -> None:
        """Looks at the answers that loop, after one engine step was processed.

        Args:
            result: of `OutputProcessor.process_outputs`, which is added to.
            iteration_stats: as vLLM gave them.
            held: what `hold` gave.
        """
        step = _Step(result, iteration_stats, held)
        looping = {id(state): state for state in (*held.values(), *self._monitor.looping_states)}
        for state in looping.values() if self.on else ():
            if self._may_act(state):
                try:
                    self._look(state, step)
                except Exception:
                    self._fail()
                    break
        for request_id, state in held.items():
            if request_id in self._processor.request_states:  # Neither continued nor at a stop string.
                self._end_safely(state, step)

    def _end_safely(self, state: Any, step: _Step) -> None:
        try:
            self._end(state, self._reasons.LENGTH, None, step)
        except Exception as error:
            self._fail()
            if state.queue is not None:  # Else its client would wait for ever.
                state.queue.put(error)

    def _fail(self) -> None:
        self.on = False
        logger.exception("vllm-surgery: a rescue has failed; answers that loop are left as they are")

    def _may_act(self, state: Any) -> bool:
        rescue: _Rescue | None = getattr(state, _RESCUE, None)
        if not self._monitor.on:  # What it knew of loops may no longer be so.
            return False
        return rescue is not None and not rescue.left and state.request_id in self._processor.request_states

    def ended(self, state: Any, answer: WatchedAnswer) -> None:
        """Counts the rescues of an answer that has ended."""
        rescue: _Rescue | None = getattr(state, _RESCUE, None)
        if rescue is None or not rescue.done:
            return
        *before, last = rescue.done
        for done in before:
            self._count(done, LOOPED_AGAIN, rescue)
        if last.action.name == STOP:
            self._count(last, ENDED, rescue)
        elif any(loop.outcome == "terminal" for loop, _ in answer.loops):
            self._count(last, LOOPED_AGAIN, rescue)
        else:
            self._count(last, CUT if answer.finish_reason in _BROKEN_OFF else ENDED, rescue)

    def _count(self, done: _Done, outcome: str, rescue: _Rescue) -> None:
        self._metrics.count(done.patch, done.loop.kind, done.action.name, outcome, done.tokens)
        seen = {"patch": done.patch, "kind": done.loop.kind, "onset": done.loop.onset, "tokens": done.tokens}
        headers = rescue.request.trace_headers
        tracing.told(tracing.RESCUE, done.began, headers, action=str(done.action), outcome=outcome, **seen)

    def _look(self, state: Any, step: _Step) -> None:
        rescue: _Rescue = getattr(state, _RESCUE)
        ends = state.request_id in step.held
        loop = self._certain(state, rescue, ends=ends)
        if loop is None:
            return
        answer = AnswerState(self._processor, state, rescue.request)
        action = self._choose(loop, rescue, answer)
        if action is None:
            rescue.left = True
        elif action.name != STOP:
            self._go_on(state, rescue, loop, action, step)
        elif not ends:
            self._stop(state, rescue, loop, step)

    def _certain(self, state: Any, rescue: _Rescue, *, ends: bool) -> Loop | None:
        """The loop that the answer is in for certain."""
        kinds = rescue.policy.actions.keys()
        tokens = state.detokenizer.num_output_tokens()
        if not ends:
            seen = lasting(self._monitor.running(state), kinds, tokens, rescue.since, TOKENS)
            if not seen or tokens < rescue.read_at:
                return None
            rescue.read_at = read_again_at(tokens)
        found = self._monitor.read_again(state.detokenizer.output_token_ids, "cut" if ends else "stop")
        certain = lasting(found, kinds, tokens, rescue.since, AT_THE_END if ends else TOKENS)
        return certain[0] if certain else None

    def _choose(self, loop: Loop, rescue: _Rescue, answer: AnswerState) -> Action | None:
        """What can be done about a loop. An answer that can't be continued is stopped where the policy may stop it."""
        action = rescue.policy.next(loop.kind, rescue.tried)
        if action is None or action.name == STOP:
            return action
        if hindrance(rescue.request) is not None or not answer.can_be_cut():
            return rescue.policy.stop(loop.kind)
        if action.name == PATCH and not self._has_another_patch(action, rescue):
            return rescue.policy.next(loop.kind, [*rescue.tried, action])
        return action

    def _has_another_patch(self, action: Action, rescue: _Rescue) -> bool:
        offered = self._offered(action.patch)
        now = rescue.digest if rescue.digest is not None else pinned(rescue.request.sampling_params.extra_args)
        return offered is not None and offered.digest != now

    def _offered(self, name: str) -> Offered | None:
        try:
            return None if self._offer is None else self._offer().named(name)
        except UnknownPatchError:
            return None

    def _stop(self, state: Any, rescue: _Rescue, loop: Loop, step: _Step) -> None:
        unspent = rescue.request.sampling_params.max_tokens - state.detokenizer.num_output_tokens()
        rescue.done.append(_Done(loop, self._monitor.patch_of(state), Action(STOP), unspent))
        step.result.reqs_to_abort.append(state.request_id)
        self._end(state, self._reasons.REPETITION, f"{loop.kind} loop since token {loop.onset}", step)

    def _end(self, state: Any, reason: Any, stop_reason: str | None, step: _Step) -> None:
        answer = AnswerState(self._processor, state, getattr(state, _RESCUE).request)
        last = answer.end(reason, stop_reason, step.iteration_stats)
        if last is not None:
            step.result.request_outputs.append(last)
        self._monitor.stopped(state, str(reason))

    def _go_on(self, state: Any, rescue: _Rescue, loop: Loop, action: Action, step: _Step) -> None:
        answer = AnswerState(self._processor, state, rescue.request)
        tokens = answer.token_ids
        kept = kept_tokens(state, tokens, loop.onset)
        offered = self._offered(action.patch) if action.name == PATCH else None
        if offered is not None:
            rescue.digest = offered.digest
        done = _Done(loop, self._monitor.patch_of(state), action, len(tokens) - len(kept))
        rest = continuation(rescue.request, kept, [*rescue.tried, action], rescue.digest)
        if len(kept) < len(tokens):
            answer.cut(kept)
            self._monitor.taken_back(state, loop, kept)
        old = state.request_id
        answer.rename(rest.request_id)
        rescue.done.append(done)
        rescue.since, rescue.read_at = len(kept), 0
        if offered is not None:
            setattr(state, REQUEST_PATCH, offered.id)
        try:
            self._sender.replace(old, rest, state)
        except Exception:  # Nobody makes the rest of this answer.
            self._end(state, self._reasons.ABORT, None, step)
            raise
