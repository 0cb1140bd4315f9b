# SPDX-License-Identifier: Apache-2.0
"""A request whose answer is taken back while another loop, that nothing is done about, goes on in what is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_surgery.engine.monitoring.request import RequestWatch
from vllm_surgery.loops import Loop

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from vllm_surgery.loops import Ending, Kind

DOOM = Loop("doom", 2, 4, 2.0, 10, "running")
VERBATIM = Loop("verbatim", 20, 5, 4.0, 40, "running")


class Detector:
    """Tells of loops once so many tokens have come."""

    def __init__(self, *at: tuple[int, Loop]) -> None:
        self._at, self._tokens = at, 0

    @property
    def looping(self) -> Collection[Kind]:
        return {loop.kind for tokens, loop in self._at if tokens <= self._tokens}

    def feed(self, token_ids: Sequence[int], /) -> Sequence[Loop]:
        before, self._tokens = self._tokens, self._tokens + len(token_ids)
        return [loop for tokens, loop in self._at if before < tokens <= self._tokens]

    def finish(self, ending: Ending, /) -> Sequence[Loop]:
        return [loop for tokens, loop in self._at if tokens <= self._tokens]


def test_a_loop_in_what_is_kept_is_known_afterwards_too() -> None:
    watch = RequestWatch(Detector((10, DOOM), (40, VERBATIM)), "a@1")
    watch.feed(range(50), "a@1")
    assert watch.looping == {"doom": "a@1", "verbatim": "a@1"}
    watch.take_back(VERBATIM, range(20), Detector((10, DOOM), (30, VERBATIM)))
    assert (watch.looping, watch.running, watch.tokens) == ({"doom": "a@1"}, {"doom": DOOM}, 20)
    watch.feed(range(15), "b@2")
    assert watch.looping == {"doom": "a@1", "verbatim": "b@2"}
    answer = watch.finish("length")
    assert {loop.kind for loop, _ in answer.loops} == {"doom", "verbatim"}
    assert answer.taken_back == ()
