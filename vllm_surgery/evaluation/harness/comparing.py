# SPDX-License-Identifier: Apache-2.0
"""Two arms' results on the same documents: what changed, how surely, and how often the texts loop."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from vllm_surgery.errors import UsageError
from vllm_surgery.evaluation.analysis.statistics import mcnemar
from vllm_surgery.intervals import Estimate, Z, paired_difference, wilson
from vllm_surgery.loops.answers import of_text
from vllm_surgery.loops.watcher import detect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllm_surgery.evaluation.harness.reading import Key, Results

_LEAST_FOR_INTERVAL = 2
_RIGHT_OR_WRONG = frozenset({0.0, 1.0})


@dataclass(frozen=True)
class Change:
    """One metric of one task under two arms, paired by document.

    Attributes:
        documents: that both arms answered.
        before: mean of the first arm.
        after: mean of the second.
        difference: of the means, with the interval that the paired differences give: Agresti and Min's where the
            metric is 0 or 1, else the normal approximation. None of fewer than two documents, nor of other metrics
            that all documents change by as much.
        lost: documents that only the first arm gets right, where the metric is 0 or 1; else None.
        won: documents that only the second does.
        p: of McNemar's exact test on those.
    """

    arm: str
    task: str
    filter: str
    metric: str
    documents: int
    before: float
    after: float
    difference: Estimate
    lost: int | None = None
    won: int | None = None
    p: float | None = None


@dataclass(frozen=True)
class LoopRate:
    """How many of an arm's texts in one task end in a loop."""

    arm: str
    task: str
    texts: int
    looped: int
    rate: Estimate


@dataclass(frozen=True)
class Comparison:
    """All arms against the first.

    Attributes:
        arms: their names, the baseline first.
        notes: what was left out, and why.
    """

    arms: tuple[str, ...]
    changes: tuple[Change, ...]
    loops: tuple[LoopRate, ...]
    notes: tuple[str, ...]


def compare_results(arms: list[Results], tokenizer: str | None = None) -> Comparison:
    """Compares arms with the first of them.

    Args:
        arms: two or more, of different names.
        tokenizer: folder of the tokenizer that cuts texts for the loop detectors; words and signs without one.

    Raises:
        UsageError: two arms have one name, no task in common, or were asked different things.
    """
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names):
        raise UsageError(f"--lm-eval: two arms are called {next(name for name in names if names.count(name) > 1)}")
    base, notes, changes = arms[0], list[str](), list[Change]()
    for arm in arms[1:]:
        shared = _shared(base, arm)
        changes += list(_changes(base, arm, shared))
        notes += _missing(base, arm, shared)
    notes += [
        f"{task}: {', '.join(sorted(words))} can't be compared document by document"
        for task, words in sorted(base.left_out.items())
    ]
    loops = tuple(rate for arm in arms for rate in _loops(arm, tokenizer))
    return Comparison(tuple(names), tuple(changes), loops, tuple(notes))


def _shared(base: Results, arm: Results) -> list[Key]:
    shared = [key for key in base.samples if key in arm.samples]
    if not shared:
        raise UsageError(f"--lm-eval: {base.name} and {arm.name} have no document in common")
    for key in shared:
        told = zip(base.samples[key].hashes, arm.samples[key].hashes, strict=True)
        if any(one and other and one != other for one, other in told):
            raise UsageError(
                f"--lm-eval: document {key.doc} of {key.task} is another one for {arm.name} than for {base.name}: give "
                "all arms the same version of the task, the same few-shot examples and the same chat template"
            )
    return shared


def _changes(base: Results, arm: Results, shared: list[Key]) -> Iterator[Change]:
    scores: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for key in shared:
        before, after = base.samples[key].scores, arm.samples[key].scores
        for metric in before.keys() & after.keys():
            scores.setdefault((key.task, key.filter, metric), []).append((before[metric], after[metric]))
    for place, pairs in sorted(scores.items()):
        yield _change(arm.name, place, pairs)


def _change(arm: str, place: tuple[str, str, str], pairs: list[tuple[float, float]]) -> Change:
    before, after = [one for one, _ in pairs], [other for _, other in pairs]
    told: dict[str, int | float] = {}
    difference = _paired([other - one for one, other in pairs])
    if {*before, *after} <= _RIGHT_OR_WRONG:
        lost, won = pairs.count((1.0, 0.0)), pairs.count((0.0, 1.0))
        told = {"lost": lost, "won": won, "p": mcnemar(lost, won)}
        if len(pairs) >= _LEAST_FOR_INTERVAL:
            difference = paired_difference(lost, won, len(pairs))
    return Change(arm, *place, len(pairs), fmean(before), fmean(after), difference, **told)  # type: ignore[arg-type]


def _paired(differences: list[float]) -> Estimate:
    mean = fmean(differences)
    spread = stdev(differences) if len(differences) >= _LEAST_FOR_INTERVAL else 0.0
    if spread == 0:
        return Estimate(mean, math.nan, math.nan)
    reach = Z * spread / math.sqrt(len(differences))
    return Estimate(mean, mean - reach, mean + reach)


def _missing(base: Results, arm: Results, shared: list[Key]) -> Iterator[str]:
    for one, other in ((base, arm), (arm, base)):
        if alone := len(one.samples) - len(shared):
            yield f"{alone} results of {one.name} have none of {other.name} beside them and are left out"


def _loops(arm: Results, tokenizer: str | None) -> Iterator[LoopRate]:
    texts: dict[str, dict[int, str]] = {}
    for key, sample in arm.samples.items():
        if sample.text is not None:
            texts.setdefault(key.task, {})[key.doc] = sample.text
    for task, by_doc in sorted(texts.items()):
        looped = sum(_ends_in_a_loop(text, tokenizer) for text in by_doc.values())
        yield LoopRate(arm.name, task, len(by_doc), looped, wilson(looped, len(by_doc)))


def _ends_in_a_loop(text: str, tokenizer: str | None) -> bool:
    answer = of_text(text, folder=tokenizer)
    loops = detect(answer.tokens, answer.table, ending=answer.ending)
    return any(loop.outcome == "terminal" for loop in loops)
