# SPDX-License-Identifier: Apache-2.0
"""Monitor of the tokens of every request for loops, in the API process.

All tokens pass vLLM's `OutputProcessor`, streamed or not, in the server and in an offline `LLM`. What is known of a
request lies on vLLM's own state of that request and goes when it goes.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from time import perf_counter
from typing import TYPE_CHECKING, Any

from vllm_surgery.engine.metrics import PATCHES_KEPT
from vllm_surgery.engine.monitoring.request import RequestWatch
from vllm_surgery.engine.requests.admission import REQUEST_PATCH
from vllm_surgery.engine.server_config import logger
from vllm_surgery.engine.weight_version import patch_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from vllm_surgery.engine.monitoring.log import LoopLog
    from vllm_surgery.engine.monitoring.metrics import LoopMetrics
    from vllm_surgery.engine.monitoring.request import RequestDetector, WatchedAnswer
    from vllm_surgery.loops import Ending, Loop

_WATCH = "_vllm_surgery_watch"
"""Where a request's `RequestWatch` lies on its state; None there once its answer has been counted."""


def never_raises(act: Callable[..., None]) -> Callable[..., None]:
    """Decorator of a method that must never raise: should it fail, watching ends and serving goes on."""

    @functools.wraps(act)
    def guarded(self: LoopMonitor, *args: Any) -> None:
        if self.on:
            try:
                act(self, *args)
            except Exception:
                self.stop()
                logger.exception("vllm-surgery: watching for loops has failed and is off; serving goes on")

    return guarded


class LoopMonitor:
    """Watches the requests of one engine. None of its methods raises.

    Args:
        metrics: what to count in.
        new_detector: makes the detector of a new request.
        log: where to say that a request loops.
        patch: the id of the patch that is active before any token says so.

    Attributes:
        on: false once watching has failed.
        on_ended: called with vLLM's state of each request whose answer has ended, and with what was seen of it.
    """

    def __init__(
        self, metrics: LoopMetrics, new_detector: Callable[[], RequestDetector], log: LoopLog, patch: str
    ) -> None:
        self._metrics, self._new_detector, self._log = metrics, new_detector, log
        self._patch = patch
        self._opened: set[str] = set()
        self._looping: dict[int, Any] = {}
        self.on = True
        self.on_ended: Callable[[Any, WatchedAnswer], None] = lambda *_: None
        self._open(patch)

    @property
    def looping_states(self) -> list[Any]:
        """VLLM's states of the requests that are in a loop now."""
        return list(self._looping.values()) if self._looping else []

    def running(self, state: Any) -> Collection[Loop]:
        """The loops that a request is in, as the detectors found them."""
        watch: RequestWatch | None = getattr(state, _WATCH, None)
        return () if watch is None else watch.running.values()

    def read_again(self, token_ids: Sequence[int], ending: Ending) -> Sequence[Loop]:
        """All loops of an answer, read as a whole.

        Args:
            token_ids: the answer so far.
            ending: how it is taken to end.
        """
        detector = self._new_detector()
        detector.feed(token_ids)
        return detector.finish(ending)

    def patch_of(self, state: Any) -> str:
        """The request's own patch, or the one that the weights hold."""
        own: str | None = getattr(state, REQUEST_PATCH, None)
        return self._patch if own is None else own

    @never_raises
    def taken_back(self, state: Any, loop: Loop, kept: Sequence[int]) -> None:
        """Forgets everything after the first tokens of an answer that is in a loop.

        Args:
            state: vLLM's, of the request.
            loop: what is taken back, which a second reading may have found.
            kept: the tokens that stay.
        """
        watch = self._watch_of(state)
        before = watch.looping
        watch.take_back(loop, kept, self._new_detector())
        self._move(before, watch, state)

    @never_raises
    def stopped(self, state: Any, finish_reason: str) -> None:
        """Counts an answer that was ended here, not by vLLM."""
        self._finish(self._watch_of(state), state, finish_reason)

    @never_raises
    def step(self, taken: Sequence[tuple[Any, Any]], unfinished: Mapping[str, Any], weight_version: str | None) -> None:
        """Takes the outputs of one engine step.

        Args:
            taken: `EngineCoreOutput`s, cut at stop strings, each with its `RequestState`.
            unfinished: the states that vLLM still holds, by request.
            weight_version: of all new tokens; None if there are none.
        """
        started = perf_counter()
        if weight_version is not None:
            self._turn_to(patch_of(weight_version))
        tokens: Counter[str] = Counter()
        for output, state in taken:
            if not _generates(state):
                continue
            tokens[self.patch_of(state)] += len(output.new_token_ids)
            watch = self._watch_of(state)
            self._feed(watch, state, output.new_token_ids)
            if output.finish_reason is not None:
                self._finish(watch, state, str(output.finish_reason))
            elif output.request_id not in unfinished:
                # vLLM itself found a stop string; the engine doesn't know of it.
                self._finish(watch, state, "stop")
        for patch, count in tokens.items():
            self._metrics.spent(patch, count, 0.0)
        self._metrics.spent(self._patch, 0, perf_counter() - started)

    @never_raises
    def aborted(self, states: Iterable[Any]) -> None:
        """Takes the states of requests that vLLM has given up, some of which may be counted already."""
        started = perf_counter()
        for state in states:
            if _generates(state) and getattr(state, _WATCH, state) is not None:
                self._finish(self._watch_of(state), state, "abort")
        self._metrics.spent(self._patch, 0, perf_counter() - started)

    def stop(self) -> None:
        """Ends watching after a failure, and says so in the metrics, as far as these can be written."""
        self.on = False
        with contextlib.suppress(Exception):
            self._metrics.stopped()

    def _turn_to(self, patch: str) -> None:
        if patch != self._patch:
            self._opened.clear()  # Series of patches that went unused may have been removed.
            self._open(patch)
            self._patch = patch

    def _open(self, patch: str) -> None:
        if patch not in self._opened:
            if len(self._opened) >= PATCHES_KEPT:
                self._opened.clear()
            self._metrics.open(patch)
            self._opened.add(patch)

    def _watch_of(self, state: Any) -> RequestWatch:
        watch: RequestWatch | None = getattr(state, _WATCH, None)
        if watch is None:
            watch = self._begin(state)
            setattr(state, _WATCH, watch)
        return watch

    def _begin(self, state: Any) -> RequestWatch:
        patch = self.patch_of(state)
        self._open(patch)
        try:
            return RequestWatch(self._new_detector(), patch)
        except Exception as error:
            unwatched = RequestWatch(None, patch)
            self._give_up(unwatched, state, error)
            return unwatched

    def _feed(self, watch: RequestWatch, state: Any, token_ids: Sequence[int]) -> None:
        if not token_ids:
            return
        before = watch.looping
        try:
            news = watch.feed(token_ids, self.patch_of(state))
        except Exception as error:
            self._give_up(watch, state, error)
            return
        if news:
            self._tell(news, before, watch, state)

    def _finish(self, watch: RequestWatch, state: Any, finish_reason: str) -> None:
        setattr(state, _WATCH, None)
        try:
            answer = watch.finish(finish_reason)
        except Exception as error:
            self._give_up(watch, state, error)
            answer = watch.finish(finish_reason)
        for kind, patch in watch.looping.items():
            self._metrics.left(kind, patch)
        self._looping.pop(id(state), None)
        self._metrics.ended(answer)
        self.on_ended(state, answer)

    def _tell(self, news: Sequence[Loop], before: Mapping[Any, str], watch: RequestWatch, state: Any) -> None:
        self._move(before, watch, state)
        now = watch.looping
        for loop in news:
            if loop.outcome == "running" and loop.kind not in before and loop.kind in now:
                self._log.found(loop, state.external_req_id, now[loop.kind])

    def _move(self, before: Mapping[Any, str], watch: RequestWatch, state: Any) -> None:
        """Counts the loops that a request has entered and left."""
        now = watch.looping
        for kind, patch in before.items() - now.items():
            self._metrics.left(kind, patch)
        for kind, patch in now.items() - before.items():
            self._metrics.entered(kind, patch)
        if now:
            self._looping[id(state)] = state
        else:
            self._looping.pop(id(state), None)

    def _give_up(self, watch: RequestWatch, state: Any, error: Exception) -> None:
        for kind, patch in watch.looping.items():
            self._metrics.left(kind, patch)
        self._looping.pop(id(state), None)
        watch.drop_detector()
        self._metrics.failed(watch.patch)
        self._log.failed(error, state.external_req_id)


def _generates(state: Any) -> bool:
    """True for a request for tokens, not for a pooled vector."""
    return state.detokenizer is not None
