# SPDX-License-Identifier: Apache-2.0
"""What is compared: this package's detectors, vLLM's own rule at three settings, and a compression ratio."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_surgery.loops import KINDS, Kind, Loop, Thresholds, TokenTable, Watcher

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.corpora.samples import Sample
    from vllm_surgery.loops import Ending

STEP = 32
"""Tokens that the watcher is given at once, to see when it says so. What it finds doesn't depend on it."""

VLLM_SETTINGS = ((20, 12), (20, 4), (64, 4))
"""`max_pattern_size` and `min_count`: what was settled on elsewhere after false cuts, what users try first, and a longer
pattern. Each stops wherever the one before it does, so the strictest needn't be asked if a laxer one is silent."""

RATIO = 2.4
"""Above it Whisper calls a text a loop."""

PEERS = (*(f"vLLM ({size}, {count})" for size, count in VLLM_SETTINGS), f"zlib > {RATIO}")


@dataclass(frozen=True)
class Verdict:
    """What all rules say about one sample.

    Attributes:
        loops: what the watcher found.
        seen_at: for each kind that it found, after how many tokens it first said so.
        peers: which of `PEERS` fire.
        if_cut: whether anything would be found, had the budget cut the answer where it ends.
        before: what older detectors found, where their reports are at hand.
    """

    loops: tuple[Loop, ...]
    seen_at: dict[Kind, int]
    peers: frozenset[str]
    if_cut: bool = False
    before: tuple[Loop, ...] = ()

    def kinds(self) -> frozenset[str]:
        """The kinds of loop that were found."""
        return frozenset(loop.kind for loop in self.loops)

    def fires(self, rule: str) -> bool:
        """Whether a kind of loop (or `any`) was found, or a peer fires."""
        if rule == "any":
            return bool(self.loops)
        return rule in (self.kinds() if rule in KINDS else self.peers)


def judge(sample: Sample, table: TokenTable | None, thresholds: Thresholds, peers: bool = True) -> Verdict:
    """Asks all rules about a sample."""
    loops, seen_at = watch(sample.tokens, table, thresholds, sample.ending)
    if_cut = bool(loops) or bool(watch(sample.tokens, table, thresholds, "cut")[0])
    return Verdict(loops, seen_at, _peers(sample) if peers else frozenset(), if_cut)


def watch(
    tokens: Sequence[int], table: TokenTable | None, thresholds: Thresholds, ending: Ending = "unknown"
) -> tuple[tuple[Loop, ...], dict[Kind, int]]:
    """What the watcher finds, and when it says so."""
    watcher = Watcher(table, thresholds)
    seen_at: dict[Kind, int] = {}
    for start in range(0, len(tokens), STEP):
        for loop in watcher.feed(tokens[start : start + STEP]):
            seen_at.setdefault(loop.kind, min(start + STEP, len(tokens)))
    loops = watcher.finish(ending)
    for loop in loops:
        seen_at.setdefault(loop.kind, len(tokens))
    return loops, seen_at


def _peers(sample: Sample) -> frozenset[str]:
    fired = set()
    for name, (size, count) in reversed(list(zip(PEERS, VLLM_SETTINGS, strict=False))):
        if not _vllm_stops(sample.tokens, size, count):
            break
        fired.add(name)
    return frozenset(fired | ({PEERS[-1]} if compression_ratio(sample.text) > RATIO else set()))


def _vllm_stops(tokens: Sequence[int], size: int, count: int) -> bool:
    """Whether vLLM's rule stops the answer at any of its tokens."""
    from vllm.sampling_params import RepetitionDetectionParams
    from vllm.v1.core.sched.utils import check_sequence_repetition

    rule = RepetitionDetectionParams(max_pattern_size=size, min_pattern_size=1, min_count=count)
    said: list[int] = []
    for token in tokens:
        said.append(token)
        if check_sequence_repetition(said, rule):
            return True
    return False


def compression_ratio(text: str) -> float:
    """Bytes over bytes when packed, of the whole text."""
    data = text.encode("utf-8", "surrogatepass")
    return len(data) / len(zlib.compress(data)) if data else 0.0
