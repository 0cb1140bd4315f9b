# SPDX-License-Identifier: Apache-2.0
"""Which edits the gradients promise the most of: single units with given gains, and sets of many small changes.

To first order a change d of a gain moves the log-odds of a loop's next token by ``m * d``; to second order it costs
healthy text a KL divergence of ``F * d ** 2 / 2``. Most fall of the odds for a given cost is had by going along
``-m / F``: the natural gradient (Amari 1998, "Natural Gradient Works Efficiently in Learning"), with the diagonal of
the Fisher information alone, as in elastic weight consolidation (https://arxiv.org/abs/1612.00796). This is the
project's own way, not the paper's, and what it promises is a guess until full generations confirm it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from vllm_surgery.units import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from vllm_surgery.localization.gains import Block
    from vllm_surgery.localization.gradients import Gradients

    Numbers: TypeAlias = NDArray[np.float64]

Unit: TypeAlias = tuple[Kind, int, int]
"""Kind, layer, index."""

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
KL_TARGETS = (0.003, 0.01, 0.03, 0.06)
"""Nats a token on healthy text, from what nobody would notice to about what an edit may cost at all."""

FLOOR_PERCENTILE = 10.0
"""Units that healthy text feels less than this share of units does count as felt that much. Else neurons that never
fire there would win by a division by nearly nothing."""

TRIM = 0.2
"""The share of transcripts left out at each end of a unit's margins: a unit must work on most loops, and one transcript
with a large gradient can't carry it."""

LEAST_CHANGE, MOST_CHANGE = -2.0, 4.0
"""The farthest that a set's gain goes from 1: to -1 and 5, the ends of the gains that single units are tried with."""

STEP = 0.25
"""Gains in a set are multiples of this: units share gains, and a patch stays short. What rounds to 1 drops out."""

_HALVINGS = 60
"""Of the interval in which a step's length is sought: the changes in a step differ by many orders of magnitude."""


@dataclass(frozen=True)
class Direction:
    """An edit, and what the gradients promise of it.

    Attributes:
        gains: by unit, in order.
        margin: by how much the log-odds of a loop's next token change. In nats; below 0 is good.
        kl: what it costs healthy text, in nats a token.
    """

    gains: dict[Unit, float]
    margin: float
    kl: float


def single_candidates(gradients: Gradients, gains: Iterable[float], count: int) -> list[Direction]:
    """Units with one of `gains` each that lower the odds, those with the largest fall per square root of cost first.

    A unit's fall per root of cost is the same for all gains on one side of 1; of these the strongest comes first. There
    are `count` at most.
    """
    field = _Field.of(gradients)
    found: list[tuple[float, float, int, float]] = []
    strength = np.abs(field.margins) / np.sqrt(field.felt)
    order = np.argsort(-strength, kind="stable")[:count]
    changes = sorted((gain - 1.0 for gain in gains if gain != 1.0), key=abs, reverse=True)
    for place in order:
        useful = [change for change in changes if change * field.margins[place] < 0]
        found += [(-strength[place], -abs(change), int(place), change) for change in useful]
    return [field.direction({place: change}) for _, _, place, change in sorted(found)[:count]]


def set_candidates(
    gradients: Gradients, sizes: Sequence[int] = SIZES, kl_targets: Sequence[float] = KL_TARGETS
) -> list[Direction]:
    """For each size and cost the natural-gradient step over the units that gain the most by it; alike ones once.

    A set is smaller than its size where changes are too small to be written, and its cost below the target where its
    gains are at their ends.
    """
    field = _Field.of(gradients)
    step = -field.margins / field.felt
    order = np.argsort(-(field.margins**2) / field.felt, kind="stable")
    found: dict[tuple[tuple[Unit, float], ...], Direction] = {}
    for size in sizes:
        chosen = order[:size]
        for target in kl_targets:
            changes = _scaled(step[chosen], field.felt[chosen], target)
            kept = {int(place): float(change) for place, change in zip(chosen, changes, strict=True) if change}
            if kept:
                direction = field.direction(kept)
                found.setdefault(tuple(direction.gains.items()), direction)
    return list(found.values())


@dataclass(frozen=True)
class _Field:
    """All units in a row.

    Attributes:
        margins: of each, robustly over transcripts.
        felt: sensitivities, none below the floor.
    """

    units: list[Unit]
    margins: Numbers
    felt: Numbers

    @classmethod
    def of(cls, gradients: Gradients) -> _Field:
        blocks = sorted(gradients.margins)
        units = [(kind, layer, index) for kind, layer in blocks for index in range(_width(gradients, (kind, layer)))]
        margins = np.concatenate([robust_mean(gradients.margins[block]) for block in blocks])
        sensitivities = np.concatenate([gradients.sensitivities[block] for block in blocks]).astype(np.float64)
        floor = np.percentile(sensitivities, FLOOR_PERCENTILE)
        return cls(units, margins, np.maximum(sensitivities, max(floor, np.finfo(np.float32).tiny)))

    def direction(self, changes: Mapping[int, float]) -> Direction:
        """The edit that changes the gains of units at these places."""
        gains = {self.units[place]: 1.0 + change for place, change in sorted(changes.items())}
        margin = sum(float(self.margins[place]) * change for place, change in changes.items())
        kl = sum(0.5 * float(self.felt[place]) * change**2 for place, change in changes.items())
        return Direction(gains, margin, kl)


def _width(gradients: Gradients, block: Block) -> int:
    return len(gradients.sensitivities[block])


def robust_mean(margins: NDArray[np.float32]) -> Numbers:
    """The mean of ``[transcripts, units]`` over transcripts, of each unit without its `TRIM` highest and lowest."""
    ordered = np.sort(margins.astype(np.float64), axis=0)
    cut = int(TRIM * len(ordered))
    trimmed: Numbers = ordered[cut : len(ordered) - cut].mean(axis=0)
    return trimmed


def _scaled(step: Numbers, felt: Numbers, target: float) -> Numbers:
    """The longest step this way, as gains can be written, that costs no more than `target`; in changes of gains.

    By halving, for rounding and the ends of gains leave no formula. The cost grows with the length.
    """
    least = np.abs(step[step != 0.0]).min(initial=np.inf)
    low, high = 0.0, float((MOST_CHANGE - LEAST_CHANGE) / least)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if 0.5 * float((felt * _written(middle * step) ** 2).sum()) <= target:
            low = middle
        else:
            high = middle
    return _written(low * step)


def _written(changes: Numbers) -> Numbers:
    """Changes of gains, rounded to `STEP` and within their ends."""
    return np.clip(np.round(changes / STEP) * STEP, LEAST_CHANGE, MOST_CHANGE)
