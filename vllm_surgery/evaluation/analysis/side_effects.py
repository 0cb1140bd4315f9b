# SPDX-License-Identifier: Apache-2.0
"""Side effects of an arm: on tasks, on ordinary requests, and on next-token probabilities of healthy text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_surgery.evaluation.analysis.outcomes import Rates
from vllm_surgery.evaluation.analysis.statistics import mcnemar, ratio_over_groups
from vllm_surgery.evaluation.tasks.list_entries import form

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm_surgery.evaluation.drift import Drift
    from vllm_surgery.evaluation.probes import Probe
    from vllm_surgery.evaluation.records import Record
    from vllm_surgery.intervals import Estimate


@dataclass(frozen=True)
class Tasks:
    """Tasks with a right answer, against the unpatched arm.

    Attributes:
        right: of `tasks`, under this arm.
        lost: probes that only the unpatched arm gets right.
        won: probes that only this arm gets right.
        p: of McNemar's exact test.
        same: how many texts are the same, character by character.
        form: how many have the same form: numbered, bulleted, or neither.
    """

    tasks: int
    right: int
    lost: list[str]
    won: list[str]
    p: float
    same: int
    form: int


@dataclass(frozen=True)
class Ordinary:
    """Requests that ask for no long list.

    Attributes:
        length: tokens of an answer, on average, over the unpatched arm's.
        same: how many texts are the same.
    """

    rates: Rates
    length: float
    same: int


@dataclass(frozen=True)
class Healthy:
    """Drift of next-token distributions on healthy text, a token.

    Attributes:
        kl: KL(unpatched || arm), nats a token, interval over texts.
        rest: probability of what a server didn't tell and was taken together; 0 where the divergence is exact.
        agreement: share of tokens for which both would have chosen the same.
    """

    texts: int
    tokens: int
    kl: Estimate
    rest: float
    agreement: float
    base_perplexity: float
    perplexity: float


def tasks(probes: Sequence[Probe], base: Sequence[Record], arm: Sequence[Record], *, run_code: bool) -> Tasks:
    """Judges two arms' answers to the same probes, given in the same order."""
    first = [is_right(probe, record, run_code=run_code) for probe, record in zip(probes, base, strict=True)]
    second = [is_right(probe, record, run_code=run_code) for probe, record in zip(probes, arm, strict=True)]
    lost = [probe.id for probe, one, other in zip(probes, first, second, strict=True) if one and not other]
    won = [probe.id for probe, one, other in zip(probes, first, second, strict=True) if other and not one]
    alike = sum(form(one.text) == form(other.text) for one, other in zip(base, arm, strict=True))
    return Tasks(len(probes), sum(second), lost, won, mcnemar(len(lost), len(won)), _same(base, arm), alike)


def ordinary(base: Sequence[Record], arm: Sequence[Record]) -> Ordinary:
    """Compares two arms' answers to the same ordinary requests."""
    rates, before = Rates.of(arm), Rates.of(base)
    return Ordinary(rates, rates.tokens / before.tokens if before.tokens else math.nan, _same(base, arm))


def healthy(drifts: Sequence[Drift]) -> Healthy:
    """The figures of all texts together."""
    counts = [drift.tokens for drift in drifts]
    tokens = sum(counts)
    return Healthy(
        texts=len(drifts),
        tokens=tokens,
        kl=ratio_over_groups([drift.kl for drift in drifts], counts),
        rest=sum(drift.rest for drift in drifts) / tokens,
        agreement=sum(drift.agreed for drift in drifts) / tokens,
        base_perplexity=_perplexity(sum(drift.base_loss for drift in drifts) / tokens),
        perplexity=_perplexity(sum(drift.loss for drift in drifts) / tokens),
    )


def _perplexity(loss: float) -> float:
    """Infinite where a model is so far off that a float can't say it."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def is_right(probe: Probe, record: Record, *, run_code: bool) -> bool:
    """True if an answer to a task is right."""
    if probe.check is not None:
        return probe.check.is_right(record.text, run=run_code)
    return probe.short_list().is_right(record.text, complete=record.finish == "stop")


def _same(base: Sequence[Record], arm: Sequence[Record]) -> int:
    return sum(first.text == second.text for first, second in zip(base, arm, strict=True))
