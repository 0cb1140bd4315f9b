# SPDX-License-Identifier: Apache-2.0
"""State of one request while it is answered: its detectors, and the patch that made each of its tokens."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from vllm_surgery.loops import KINDS, ending_of
from vllm_surgery.loops.answer_loops import loop_per_kind, merged_spans

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from vllm_surgery.loops import Ending, Kind, Loop


class RequestDetector(Protocol):
    """Interface of a `vllm_surgery.loops.Watcher`."""

    @property
    def looping(self) -> Collection[Kind]:
        """Kinds of loop that the request is in."""

    def feed(self, token_ids: Sequence[int], /) -> Sequence[Loop]:
        """Takes the next tokens; gives loops found or left."""

    def finish(self, ending: Ending, /) -> Sequence[Loop]:
        """All loops, now that the answer has ended in this way."""


class NullDetector:
    """Detector that sees nothing, in the place of one that failed."""

    looping: Collection[Kind] = frozenset()

    def feed(self, token_ids: Sequence[int], /) -> Sequence[Loop]:
        """Finds nothing."""
        return ()

    def finish(self, ending: Ending, /) -> Sequence[Loop]:
        """Has found nothing."""
        return ()


_NULL_DETECTOR = NullDetector()


@dataclass(frozen=True)
class WatchedAnswer:
    """An answer that is complete or was broken off.

    Attributes:
        finish_reason: in vLLM's words.
        patch: the patch that made its last token.
        tokens: how many it has.
        loops: at most one of each kind, with the patch that was active at its onset: the one that the answer ended in,
            else the first.
        looped_tokens: tokens in loops of a kind, by the patch that made them, those taken back among them.
        taken_back: loops that were taken back out of the answer and are of no kind in `loops`, with their patch.
        only_patch: the patch that made every token; of an answer that was taken back out of a loop, the one that it
            began under, whatever it went on under. None where patches were swapped in between.
    """

    finish_reason: str
    patch: str
    tokens: int
    loops: tuple[tuple[Loop, str], ...]
    looped_tokens: Mapping[tuple[Kind, str], int]
    taken_back: tuple[tuple[Loop, str], ...] = ()
    only_patch: str | None = None


class RequestWatch:
    """Follows one request. What it holds is bounded by the detector and by how often patches change meanwhile.

    Args:
        detector: new, for this request alone; None where there is none to be had.
        patch: the id of the patch that is active now.

    Attributes:
        patch: the one that made the last token, or was active at the start.
        tokens: how many have come.
        looping: the loops that the request is in, each with the patch that was active at its onset.
        running: the same loops, as the detectors found them.
    """

    __slots__ = ("_detector", "_spans", "_taken_back", "_tokens_taken_back", "looping", "patch", "running", "tokens")

    def __init__(self, detector: RequestDetector | None, patch: str) -> None:
        self._detector = detector or _NULL_DETECTOR
        self._spans = [(0, patch)]
        self.patch = patch
        self.tokens = 0
        self.looping: dict[Kind, str] = {}
        self.running: dict[Kind, Loop] = {}
        self._taken_back: dict[Kind, tuple[Loop, str]] = {}
        self._tokens_taken_back: Counter[tuple[Kind, str]] = Counter()

    def feed(self, token_ids: Sequence[int], patch: str) -> Sequence[Loop]:
        """Takes the next tokens, all made by `patch`. Gives loops found (running) or left (escaped), if any."""
        if patch != self.patch:
            self._begin_span(patch)
        self.tokens += len(token_ids)
        return self._read(token_ids)

    def _read(self, token_ids: Sequence[int]) -> Sequence[Loop]:
        news = self._detector.feed(token_ids)
        if news:
            known = self.looping | {loop.kind: self._patch_at(loop.onset) for loop in news if loop.outcome == "running"}
            self.looping = {kind: known[kind] for kind in self._detector.looping}
            seen = self.running | {loop.kind: loop for loop in news if loop.outcome == "running"}
            self.running = {kind: seen[kind] for kind in self.looping}
        return news

    def take_back(self, loop: Loop, kept: Sequence[int], detector: RequestDetector) -> None:
        """Forgets everything after the first tokens of the answer, and counts the loops that it is in as taken back.

        Args:
            loop: the one for which this is done, whether the request is known to be in it or not.
            kept: the tokens that stay.
            detector: new, for this request alone.
        """
        for kind, found in {loop.kind: loop, **self.running}.items():
            patch = self.looping.get(kind) or self._patch_at(found.onset)
            self._taken_back.setdefault(kind, (found, patch))
            self._tokens_taken_back[kind, patch] += self.tokens - max(found.onset, len(kept))
        self._spans = [self._spans[0], *(span for span in self._spans[1:] if span[0] < len(kept))]
        self.patch = self._spans[-1][1]
        self.tokens = len(kept)
        self.looping, self.running = {}, {}
        self._detector = detector
        self._read(kept)

    def drop_detector(self) -> None:
        """Goes on without the detector: tokens are counted, loops are not, not even those already found."""
        self._detector = _NULL_DETECTOR
        self.looping, self.running = {}, {}

    def finish(self, finish_reason: str) -> WatchedAnswer:
        """The answer, now that it has ended."""
        loops = self._detector.finish(ending_of(finish_reason))
        counted = [(loop, self._patch_at(loop.onset)) for loop in loop_per_kind(loops)]
        seen = {loop.kind for loop, _ in counted}
        taken_back = [found for kind, found in self._taken_back.items() if kind not in seen]
        looped = self._looped_tokens(loops) + self._tokens_taken_back
        return WatchedAnswer(
            finish_reason,
            self.patch,
            self.tokens,
            tuple(counted),
            looped,
            tuple(taken_back),
            self._spans[0][1] if len(self._spans) == 1 or self._taken_back else None,
        )

    def _begin_span(self, patch: str) -> None:
        if self._spans[-1][0] == self.tokens:
            self._spans.pop()
        self._spans.append((self.tokens, patch))
        self.patch = patch

    def _patch_at(self, index: int) -> str:
        return next(patch for start, patch in reversed(self._spans) if start <= index)

    def _looped_tokens(self, loops: Sequence[Loop]) -> Counter[tuple[Kind, str]]:
        counted: Counter[tuple[Kind, str]] = Counter()
        if not loops:
            return counted
        ends = [start for start, _ in self._spans[1:]] + [self.tokens]
        for (start, patch), end in zip(self._spans, ends, strict=True):
            for kind in KINDS:
                looped = (max(0, min(stop, end) - max(first, start)) for first, stop in merged_spans(loops, kind))
                counted[kind, patch] += sum(looped)
        return +counted
