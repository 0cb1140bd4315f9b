# SPDX-License-Identifier: Apache-2.0
"""Figures about loops and swaps from a server's ``/metrics``. Needs prometheus_client, which vLLM brings.

``GET /surgery`` does the same arithmetic in the browser; a test holds the two against each other.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from prometheus_client.parser import text_string_to_metric_families

from vllm_surgery.errors import UsageError
from vllm_surgery.intervals import wilson

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vllm_surgery.intervals import Estimate

_PREFIX = "vllm_surgery_"

Sample: TypeAlias = tuple[str, dict[str, str], float]


@dataclass(frozen=True)
class LoopCounts:
    """The loops of one kind under one patch.

    Attributes:
        kind: verbatim, decay, collapse or doom.
        answers: that looped so; counted when they end.
        terminal: those of them that ended in the loop.
        live: requests that are in such a loop now.
        tokens: generated in such loops; a token may be in loops of several kinds.
        rate: of all answers; None where none has ended yet.
        token_share: of all tokens; None where there are none.
    """

    kind: str
    answers: int
    terminal: int
    live: int
    tokens: int
    rate: Estimate | None
    token_share: float | None


@dataclass(frozen=True)
class PatchTraffic:
    """Answers under one patch set, since the server was started or had first room for its figures.

    Attributes:
        patch: its id.
        answers: that ended.
        tokens: that were generated.
        loops: one entry a kind.
    """

    patch: str
    answers: int
    tokens: int
    loops: tuple[LoopCounts, ...]


@dataclass(frozen=True)
class Swaps:
    """Swaps to one patch set that ended alike.

    Attributes:
        patch: its id.
        result: ``done``, ``unchanged``, or why not.
        count: since the server was started.
        mean_seconds: of all swaps that were carried out, to whatever patches, from the call to the answer; None beside
            those that weren't.
    """

    patch: str
    result: str
    count: int
    mean_seconds: float | None


@dataclass(frozen=True)
class Traffic:
    """The figures of one scrape, in its order.

    Attributes:
        patches: that had traffic.
        swaps: by patch and result.
        detector_errors: answers that were watched no further because a detector failed.
    """

    patches: tuple[PatchTraffic, ...]
    swaps: tuple[Swaps, ...]
    detector_errors: int

    @classmethod
    def of(cls, scrape: str) -> Traffic:
        """The figures in the text of ``/metrics``.

        Raises:
            UsageError: it isn't Prometheus's text format.
        """
        sums = Sums(samples(scrape))
        return cls(
            patches=tuple(_patch_traffic(sums, patch) for (patch,) in sums.values_of("requests_total", "patch")),
            swaps=tuple(_swaps(sums)),
            detector_errors=sums.whole("detector_errors_total"),
        )


def rate_of(successes: int, total: int) -> Estimate | None:
    """A share and its interval; None of nothing.

    A loop is counted for the patch that was active at its onset, its answer for the patch that made its last token. So
    right after a swap there can be more loops than answers, and the rate is cut at 1.
    """
    return wilson(min(successes, total), total) if total else None


class Sums:
    """Samples by name, to be added up over every label that isn't asked for."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._by_name: dict[str, list[tuple[dict[str, str], float]]] = defaultdict(list)
        for name, labels, value in samples:
            self._by_name[name].append((labels, value))

    def whole(self, name: str, **wanted: str) -> int:
        """The sum of the samples that have these labels; nothing counts as 0."""
        return round(self.of(name, **wanted))

    def of(self, name: str, **wanted: str) -> float:
        """As `whole`, with fractions."""
        found = self._by_name.get(name, ())
        return sum(value for labels, value in found if wanted.items() <= labels.items())

    def values_of(self, name: str, *labels: str) -> list[tuple[str, ...]]:
        """The values of these labels that stand together, each combination once."""
        found = self._by_name.get(name, ())
        return list(dict.fromkeys(tuple(each.get(label, "") for label in labels) for each, _ in found))


def samples(scrape: str) -> Iterable[Sample]:
    """Samples of this package in the text of ``/metrics``, their names without its prefix.

    Raises:
        UsageError: it isn't Prometheus's text format.
    """
    lines = [line for line in scrape.splitlines() if _PREFIX in line]  # vLLM's own are hundreds of kilobytes.
    try:
        for family in text_string_to_metric_families("\n".join(lines) + "\n"):
            for sample in family.samples:
                yield sample.name.removeprefix(_PREFIX), sample.labels, _finite(sample.value)
    except (ValueError, KeyError, IndexError) as error:
        raise UsageError(f"/metrics is not in Prometheus's text format: {error}") from None


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{value} is no count")
    return float(value)


def _patch_traffic(sums: Sums, patch: str) -> PatchTraffic:
    answers, tokens = sums.whole("requests_total", patch=patch), sums.whole("output_tokens_total", patch=patch)
    kinds = sums.values_of("loops_total", "kind")
    return PatchTraffic(patch, answers, tokens, tuple(_loops(sums, patch, kind, answers, tokens) for (kind,) in kinds))


def _loops(sums: Sums, patch: str, kind: str, answers: int, tokens: int) -> LoopCounts:
    looped = sums.whole("loops_total", patch=patch, kind=kind)
    spent = sums.whole("looped_tokens_total", patch=patch, kind=kind)
    return LoopCounts(
        kind=kind,
        answers=looped,
        terminal=sums.whole("loops_total", patch=patch, kind=kind, outcome="terminal"),
        live=sums.whole("looping_requests", patch=patch, kind=kind),
        tokens=spent,
        rate=rate_of(looped, answers),
        token_share=min(1.0, spent / tokens) if tokens else None,
    )


def _swaps(sums: Sums) -> Iterable[Swaps]:
    for patch, result in sums.values_of("swaps_total", "patch", "result"):
        timed = sums.of("swap_seconds_count", phase="total") if result == "done" else 0
        mean = sums.of("swap_seconds_sum", phase="total") / timed if timed else None
        yield Swaps(patch, result, sums.whole("swaps_total", patch=patch, result=result), mean)
