# SPDX-License-Identifier: Apache-2.0
"""Decay looked for in tokens, as servers do it, and in the text they stand for, cut into words: which is better?"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.benchmarks.detector_report import HARDEST, share
from tests.benchmarks.markdown import table as markdown_table
from tests.corpora.labels import Label
from tests.corpora.rules import watch
from vllm_surgery.loops import Thresholds, TokenTable
from vllm_surgery.loops.answers import of_words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.corpora.samples import Corpora, Sample
    from vllm_surgery.loops import Ending

    Finds = Callable[[Sample], bool]


def decay_on_text(corpora: Corpora, table: TokenTable) -> str:
    """The comparison in Markdown. Here an answer counts as found if any decay is found in it."""

    def in_tokens(sample: Sample) -> bool:
        return _decays(sample.tokens, table, sample.ending)

    def in_text(sample: Sample) -> bool:
        words = of_words(sample.text)
        return _decays(words.tokens, words.table, sample.ending)

    costs = [_seconds(finds, corpora.healthy) for finds in (in_tokens, in_text)]
    rows = [
        [name, *_figures(corpora, finds), f"{cost / costs[0]:.1f}"]
        for name, finds, cost in (("tokens", in_tokens, costs[0]), ("text, cut into words", in_text, costs[1]))
    ]
    head = ["looked for in", "false alarms", HARDEST, "planted decays", "labelled decays", "time, relative"]
    return "\n".join(["### Decay in tokens and in text", "", *markdown_table(head, rows), ""])


def _decays(tokens: tuple[int, ...], table: TokenTable | None, ending: Ending) -> bool:
    return any(loop.kind == "decay" for loop in watch(tokens, table, Thresholds(), ending)[0])


def _figures(corpora: Corpora, finds: Finds) -> list[str]:
    groups: list[Iterable[Sample]] = [
        (one for one in corpora.healthy if one.group != HARDEST),
        (one for one in corpora.healthy if one.group == HARDEST),
        (one for one in corpora.planted if one.truth is not None and one.truth.kind == "decay"),  # type: ignore[union-attr]
        (one for one in corpora.real if _labelled(one)),
    ]
    told = [[finds(one) for one in group] for group in groups]
    return [share(sum(found), len(found)) for found in told]


def _labelled(sample: Sample) -> bool:
    return isinstance(sample.truth, Label) and any(
        finding.kind == "decay" and not finding.optional for finding in sample.truth.findings
    )


def _seconds(finds: Finds, samples: Iterable[Sample]) -> float:
    started = time.process_time()
    for sample in samples:
        finds(sample)
    return time.process_time() - started
