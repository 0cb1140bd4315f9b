# SPDX-License-Identifier: Apache-2.0
"""Activity of units before a loop and inside it, from forward passes alone, in the engine that serves."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vllm_surgery.errors import UsageError
from vllm_surgery.localization.ranking.allowance import Allowance

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from vllm_surgery.localization.candidates import Values
    from vllm_surgery.localization.transcripts import Passage
    from vllm_surgery.patch.units import UnitBlock


@dataclass(frozen=True, eq=False)
class NeuronActivity:
    """Activations ``act(gate) * up`` of one layer's neurons: means over rows, then over passages, each ``[width]``.

    Attributes:
        mean_before: before the loop.
        mean_after: inside it, over the passages that have one.
        size_before: of absolute activations.
        size_after: of absolute activations.
        agreement: the share of looping passages in which the size is larger inside the loop than before it.
    """

    mean_before: Values
    mean_after: Values
    size_before: Values
    size_after: Values
    agreement: Values


@dataclass(frozen=True, eq=False)
class ExpertActivity:
    """One layer's routed experts: means over rows, then over passages, each ``[experts]``.

    Attributes:
        frequency_before: the share of rows that choose the expert, before the loop.
        frequency_after: inside it, over the passages that have one.
        norm_before: the norm of the expert's output times its router weight, zero in rows that don't choose it; None
            where the kernel that serves chooses experts itself and so can't be asked for one expert's output.
        norm_after: as above.
        agreement: the share of looping passages in which the norm, or where there is none the frequency, is larger
            inside the loop than before it.
    """

    frequency_before: Values
    frequency_after: Values
    norm_before: Values | None
    norm_after: Values | None
    agreement: Values


@dataclass(frozen=True, eq=False)
class Activity:
    """Activity of all units that were measured.

    Attributes:
        neurons: by layer; only layers with a dense MLP.
        experts: by layer; only layers with routed experts.
        passages: how many were looked at.
        looping: how many of them loop.
    """

    neurons: Mapping[int, NeuronActivity]
    experts: Mapping[int, ExpertActivity]
    passages: int
    looping: int


@dataclass(frozen=True, eq=False)
class PassageMeans:
    """One passage's means of one layer: ``[quantities, 2, units]``, before and inside the loop.

    Attributes:
        values: of neurons the mean and the size; of experts the frequency and, where there are any, the norm.
        loops: whether the second of each pair counts.
    """

    values: Values
    loops: bool


def measure_activity(llm: Any, passages: Sequence[Passage], allowance: Allowance | None = None) -> Activity:
    """Runs each passage through the engine once, as a prompt, with hooks in the model that are gone afterwards.

    Args:
        llm: a `vllm.LLM` that isn't inside one of its calls, started with ``enforce_eager``. Its caches are emptied.
        passages: they count alike, however long. Those without a loop count for what is before a loop alone. The first
            of them must loop.
        allowance: the time that it may take; None for all that it needs.

    Raises:
        UsageError: no passage loops, or one has no row before its loop.
        EngineError: this engine can't be looked into, or a number in it isn't finite; the text says which.
    """
    _check(passages)
    from vllm_surgery.localization.ranking.read_engine import read_passage

    seen: dict[UnitBlock, list[PassageMeans]] = defaultdict(list)
    read = []
    for passage in (allowance if allowance is not None else Allowance()).within(passages, "transcripts"):
        read.append(passage)
        for block, values in read_passage(llm, passage).items():
            seen[block].append(PassageMeans(values, bool(passage.after)))
    return summarise(seen, read)


def summarise(seen: Mapping[UnitBlock, Sequence[PassageMeans]], passages: Sequence[Passage]) -> Activity:
    """The means over passages, of what each showed by kind and layer."""
    return Activity(
        {layer: _neurons(each) for (kind, layer), each in sorted(seen.items()) if kind == "neurons"},
        {layer: _experts(each) for (kind, layer), each in sorted(seen.items()) if kind == "experts"},
        len(passages),
        sum(bool(passage.after) for passage in passages),
    )


def _check(passages: Sequence[Passage]) -> None:
    if not any(passage.after for passage in passages):
        raise UsageError("no transcript ends in a loop, so there is nothing to compare")
    if not all(passage.before for passage in passages):
        raise UsageError("a transcript has nothing before its loop")


def _neurons(seen: Sequence[PassageMeans]) -> NeuronActivity:
    before, after = _averages(seen)
    return NeuronActivity(before[0], after[0], before[1], after[1], _agreement(seen))


def _experts(seen: Sequence[PassageMeans]) -> ExpertActivity:
    before, after = _averages(seen)
    norms = len(before) > 1
    return ExpertActivity(
        frequency_before=before[0],
        frequency_after=after[0],
        norm_before=before[1] if norms else None,
        norm_after=after[1] if norms else None,
        agreement=_agreement(seen),
    )


def _averages(seen: Sequence[PassageMeans]) -> tuple[Values, Values]:
    """``[quantities, units]`` before and inside."""
    return (
        _mean([each.values[:, 0] for each in seen]),
        _mean([each.values[:, 1] for each in seen if each.loops]),
    )


def _agreement(seen: Sequence[PassageMeans]) -> Values:
    """By the last quantity: the size, the norm, or the frequency where that is all."""
    rises = [each.values[-1, 1] > each.values[-1, 0] for each in seen if each.loops]
    return _mean(rises)


def _mean(passages: Sequence[NDArray[Any]]) -> Values:
    mean: Values = np.asarray(np.stack(passages).mean(axis=0, dtype=np.float64), dtype=np.float32)
    return mean
