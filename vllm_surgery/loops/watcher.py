# SPDX-License-Identifier: Apache-2.0
"""The detectors of one request together."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from vllm_surgery.loops.detectors import TAKEN_BACK, Collapse, Decay, Doom, Scanner, UnitDetector, Verbatim, rules_of
from vllm_surgery.loops.kernels import integers
from vllm_surgery.loops.thresholds import Thresholds

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from vllm_surgery.loops.loop import Ending, Kind, Loop
    from vllm_surgery.loops.tokens import TokenTable

_BLOCK: Final = 64
"""Tokens that wait until they are looked at together, since calling a kernel costs as much as a few dozen tokens in it.
So a loop is reported up to this many tokens late; its indices are not affected."""

_CHUNK: Final = 256
"""Tokens that a detector reads before the next one does. Motifs are read from the ring of the first, which must still
hold what the others are at."""

_LOOPS_KEPT: Final = 8
"""Loops of a kind that a request keeps: the first ones, and in the last place the latest."""

_NOTHING: Final[tuple[Loop, ...]] = ()
_THRESHOLDS: Final = Thresholds()


class Watcher:
    """Watches the output tokens of one request for loops. Its memory doesn't grow with the output.

    What it finds depends on the tokens alone, not on how they are divided among calls.

    Args:
        table: what the tokens are as text; without one only verbatim loops are looked for.
        thresholds: from when on a repetition is a loop. `Thresholds().strict()` is for what can't be undone.

    Attributes:
        looping: the kinds of loop that the request is in, as far as its tokens were looked at.
    """

    __slots__ = ("_detectors", "_loops", "_pending", "_scanner", "_total", "_verbatim", "looping")

    looping: frozenset[Kind]

    def __init__(self, table: TokenTable | None = None, thresholds: Thresholds = _THRESHOLDS) -> None:
        rules = rules_of(thresholds)
        self._verbatim = verbatim = Verbatim(rules, table)
        self._scanner = None if table is None else Scanner(table)
        self._detectors: tuple[UnitDetector, ...] = ()
        if table is not None:
            self._detectors = (Decay(rules, verbatim), Doom(rules, verbatim), Collapse(rules, verbatim))
        self._loops: list[Loop] = []
        self._pending: list[int] = []
        self._total = 0
        self.looping = frozenset()

    def feed(self, token_ids: Sequence[int]) -> Sequence[Loop]:
        """Takes the next tokens.

        Returns:
            Loops that were found (running) or left (escaped) since the last call; nearly always none.
        """
        pending = self._pending
        pending += token_ids
        return _NOTHING if len(pending) < _BLOCK else self._look()

    def running(self) -> tuple[Loop, ...]:
        """The loops that the request is in, as they stand now, in the order of their onset."""
        self._look()
        found = [*self._verbatim.running(), *(loop for one in self._detectors for loop in one.running())]
        return tuple(sorted((loop for loop in found if loop.kind in self.looping), key=lambda loop: loop.onset))

    def finish(self, ending: Ending = "unknown") -> tuple[Loop, ...]:
        """All loops of the request now that it has ended, in the order of their onset; none is running any more.

        A kind's first onset is where the answer began to be wasted. An answer that ends in a loop and the token that
        says so is terminal, even if `feed` has called it escaped for that one token. Of many loops of one kind the
        first and the latest are kept.

        Args:
            ending: how the answer ended. In one that was cut, lower floors hold for what it was cut in; in one that
                stopped, a list that named nothing but its few answers is no loop.
        """
        self._look()
        for loop in self._last_loops(ending):
            self._note(loop)
        self._detectors, self._scanner = (), None
        self.looping = frozenset()
        self._loops = [
            replace(loop, outcome="terminal") if self._total - loop.end <= 1 else loop for loop in self._loops
        ]
        self._loops = _without_explained(self._loops)
        return tuple(sorted(self._loops, key=lambda loop: (loop.onset, loop.kind)))

    def _last_loops(self, ending: Ending) -> Iterator[Loop]:
        if self._scanner is None and self._detectors:
            return
        yield from self._verbatim.finish(ending)
        if self._scanner is not None:
            units, count = self._scanner.finish()
            for detector in self._detectors:
                yield from detector.read(units, count)
                yield from detector.finish(self._total, ending)

    def _look(self) -> Sequence[Loop]:
        news = list(self._read())
        if not news:
            return _NOTHING
        for loop in news:
            self._note(loop)
        self.looping = frozenset(loop.kind for loop in self._loops if loop.outcome == "running")
        return news

    def _read(self) -> Iterator[Loop]:
        tokens, self._pending = self._pending, []
        self._total += len(tokens)
        for start in range(0, len(tokens), _CHUNK):
            chunk = integers(tokens[start : start + _CHUNK], np.int32)
            yield from self._verbatim.read(chunk)
            if self._scanner is not None:
                for units, count in self._scanner.read(chunk):
                    for detector in self._detectors:
                        yield from detector.read(units, count)

    def _note(self, news: Loop) -> None:
        """Keeps a loop: in the place of what was known of it, or in a new one. Removes one that is taken back."""
        for place, loop in enumerate(self._loops):
            if loop.outcome == "running" and (loop.kind, loop.onset) == (news.kind, news.onset):
                if news.period == TAKEN_BACK:
                    del self._loops[place]
                else:
                    self._loops[place] = news
                return
        same = [place for place, loop in enumerate(self._loops) if loop.kind == news.kind]
        if len(same) >= _LOOPS_KEPT:
            del self._loops[same[-1]]
        self._loops.append(news)


def _without_explained(loops: Iterable[Loop]) -> list[Loop]:
    """The loops without collapses of which another kind says more: where at least half of it is one."""
    kept = list(loops)
    for loop in [one for one in kept if one.kind == "collapse"]:
        others = [one for one in kept if one.kind != "collapse"]
        if any(2 * _shared(loop, one) >= loop.tokens for one in others):
            kept.remove(loop)
    return kept


def _shared(one: Loop, other: Loop) -> int:
    return max(0, min(one.end, other.end) - max(one.onset, other.onset))


def detect(
    token_ids: Sequence[int],
    table: TokenTable | None = None,
    thresholds: Thresholds = _THRESHOLDS,
    ending: Ending = "unknown",
) -> tuple[Loop, ...]:
    """The loops of a whole answer: what a `Watcher` that has read it finds."""
    watcher = Watcher(table, thresholds)
    watcher.feed(token_ids)
    return watcher.finish(ending)
