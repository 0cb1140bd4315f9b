# SPDX-License-Identifier: Apache-2.0
"""Edits that the gradients promise the most of: single units with given gains, and sets of many small changes.

To first order a change d of a gain moves the log-odds of a loop's next token by ``m * d``; to second order it costs
healthy text a KL divergence of ``F * d ** 2 / 2``. Most fall of the odds for a given cost is had by going along
``-m / F``: the natural gradient (Amari 1998, "Natural Gradient Works Efficiently in Learning"), with the diagonal of
the Fisher information alone, as in elastic weight consolidation (https://arxiv.org/abs/1612.00796). This is the
project's own way, not the paper's, and what it promises is a guess until full generations confirm it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from vllm_surgery.patch.units import Unit

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from vllm_surgery.localization.ranking.gradients import Gradients

    Numbers: TypeAlias = NDArray[np.float64]

SIZES = (32, 64, 16, 128, 8, 256, 4, 512, 2)
"""Of sets, in the order in which they are tried: on the demo model's search probes those of some dozens did most."""
KL_TARGETS = (0.01, 0.03, 0.003)
"""Their cost by the gradients' own reckoning, in nats a token on healthy text, in the order in which it is tried."""

FLOOR_PERCENTILE = 10.0
"""The percentile of sensitivities below which units count as if at it. Else neurons that never fire on healthy text
would win by a division by nearly nothing."""

TRIM = 0.2
"""The share of transcripts left out at each end of a unit's margins: a unit must work on most loops, and one transcript
with a large gradient can't carry it."""

MIN_CHANGE, MAX_CHANGE = -2.0, 4.0
"""The farthest that a set's gain goes from 1: to -1 and 5, the ends of the gains that single units are tried with."""

STEP = 0.25
"""Gains in a set are multiples of this: units share gains, and a patch stays short. What rounds to 1 drops out."""

UNNOTICED_KL = 0.003
"""A cost that makes no difference, added to every single unit's. Without it the best fall for its cost is that of units
that can do next to nothing: on SmolLM2-135M-Instruct the first one's fall was 0.1 nats, of 2.8 that a loop has."""

_HALVINGS = 40
"""Of the interval in which a step's length is sought, on a logarithmic scale: it spans many orders of magnitude."""

_SWEEPS = 500
"""Over the multipliers of right answers, some dozens of them: by then they move in the tenth digit."""


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
    """Units with one of `gains` each that lower the odds, `count` of them at most.

    First those with the largest fall per square root of cost, to which `UNNOTICED_KL` is added.
    """
    field = _Field.of(gradients)
    changes = np.array(sorted({gain - 1.0 for gain in gains if gain != 1.0}))
    falls = -changes[:, None] * field.margins
    score = falls / np.sqrt(0.5 * field.fisher * changes[:, None] ** 2 + UNNOTICED_KL)
    best = np.argsort(-score, axis=None, kind="stable")[:count]
    chosen = [np.unravel_index(one, score.shape) for one in best if score.flat[one] > 0]
    return [field.direction({int(place): float(changes[number])}) for number, place in chosen]


def set_candidates(gradients: Gradients, sizes: Sequence[int], kl_targets: Sequence[float]) -> list[Direction]:
    """For each size and cost the natural-gradient step over the units that gain the most by it; alike ones once.

    A set is smaller than its size where changes are too small to be written, and its cost below the target where its
    gains are at their ends. Where there are gradients of right answers, the step makes none of them less likely, to
    first order: a step that is cheap on average may still flip one token that an answer hangs on.
    """
    field = _Field.of(gradients)
    found: dict[tuple[tuple[Unit, float], ...], Direction] = {}
    for size in sizes:
        constrained = _constrained(field, size)
        for target in kl_targets:
            changes = _longest_step(constrained, size, target)
            if changes:
                direction = field.direction(changes)
                found.setdefault(tuple(direction.gains.items()), direction)
    return list(found.values())


@dataclass(frozen=True)
class _Field:
    """All units in a row.

    Attributes:
        margins: of each, robustly over transcripts.
        fisher: sensitivities, none below the floor.
        right: how right answers feel each, ``[answers, units]``.
    """

    units: list[Unit]
    margins: Numbers
    fisher: Numbers
    right: Numbers

    @classmethod
    def of(cls, gradients: Gradients) -> _Field:
        blocks = sorted(gradients.margins)
        units = [
            Unit(block.kind, block.layer, index)
            for block in blocks
            for index in range(len(gradients.sensitivities[block]))
        ]
        margins = np.concatenate([robust_mean(gradients.margins[block]) for block in blocks])
        sensitivities = np.concatenate([gradients.sensitivities[block] for block in blocks]).astype(np.float64)
        floor = np.percentile(sensitivities, FLOOR_PERCENTILE)
        answers = [gradients.right[block] for block in blocks if block in gradients.right]
        right = np.concatenate(answers, axis=1).astype(np.float64) if answers else np.zeros((0, len(units)))
        return cls(units, margins, np.maximum(sensitivities, max(floor, np.finfo(np.float32).tiny)), right)

    def direction(self, changes: Mapping[int, float]) -> Direction:
        """The edit that changes the gains of units at these places."""
        gains = {self.units[place]: 1.0 + change for place, change in sorted(changes.items())}
        margin = sum(float(self.margins[place]) * change for place, change in changes.items())
        return Direction(gains, margin, self.cost(changes))

    def cost(self, changes: Mapping[int, float]) -> float:
        """The divergence that these changes of gains cost."""
        return sum(0.5 * float(self.fisher[place]) * change**2 for place, change in changes.items())


def robust_mean(margins: NDArray[np.float32]) -> Numbers:
    """The mean of ``[transcripts, units]`` over transcripts, of each unit without its `TRIM` highest and lowest."""
    ordered = np.sort(margins.astype(np.float64), axis=0)
    cut = int(TRIM * len(ordered))
    trimmed: Numbers = ordered[cut : len(ordered) - cut].mean(axis=0)
    return trimmed


def _constrained(field: _Field, size: int) -> _Field:
    """Margins along which a step of the best `size` units harms no right answer; 0 for all other units."""
    if not len(field.right):
        return field
    whole = project_constraints(field.margins, field.fisher, field.right)
    chosen = np.argsort(-(whole**2) / field.fisher, kind="stable")[:size]
    margins = np.zeros_like(field.margins)
    margins[chosen] = project_constraints(field.margins[chosen], field.fisher[chosen], field.right[:, chosen])
    return replace(field, margins=margins)


def project_constraints(margins: Numbers, fisher: Numbers, right: Numbers) -> Numbers:
    """The margins m whose step ``-m / fisher`` is the best of those that lower no row of `right`.

    That is to minimise ``margins . d + d . F d / 2`` subject to ``right . d >= 0``, by its dual problem, one multiplier
    after another (Hildreth 1957, "A quadratic programming procedure").
    """
    weighed = right / fisher
    gram, against = right @ weighed.T, weighed @ margins
    multipliers = np.zeros(len(right))
    for _ in range(_SWEEPS):
        for row, own in enumerate(np.diag(gram)):
            if own > 0:
                multipliers[row] = max(0.0, multipliers[row] + (against[row] - gram[row] @ multipliers) / own)
    return margins - multipliers @ right


def _longest_step(field: _Field, size: int, target: float) -> dict[int, float]:
    """The longest step of `size` units that costs no more than `target`: changes of gains by the units' places.

    By halving, for rounding and the ends of gains leave no formula.
    """
    steps = np.abs(field.margins / field.fisher)
    moved = steps[steps > 0]
    if not len(moved):
        return {}
    low, high = STEP / 4 / moved.max(), (MAX_CHANGE - MIN_CHANGE) / moved.min()
    best: dict[int, float] = {}
    for _ in range(_HALVINGS):
        middle = float(np.sqrt(low * high))
        changes = _step(field, size, middle)
        if field.cost(changes) <= target:
            low, best = middle, changes
        else:
            high = middle
    return best


def _step(field: _Field, size: int, length: float) -> dict[int, float]:
    """The changes of the `size` units that gain the most by a step of this length, without those that are 0."""
    changes = np.round(-length * field.margins / field.fisher / STEP) * STEP
    changes = np.clip(changes, MIN_CHANGE, MAX_CHANGE)
    # What the step maximises: its fall less its cost, in the proportion that makes it the best of its length.
    gained = -field.margins * changes - field.fisher * changes**2 / (2 * length)
    chosen = np.argsort(-gained, kind="stable")[:size]
    return {int(place): float(changes[place]) for place in sorted(chosen) if changes[place]}
