# SPDX-License-Identifier: Apache-2.0
"""Loops against side effects: every candidate that was looked at in full, the front, and the one that was chosen."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

from vllm_surgery.evaluation.report.figures import COLORS, LEFT, RIGHT, WIDTH, legend, svg, text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vllm_surgery.localization.search.measurements import Measurement
    from vllm_surgery.localization.search.search import SearchResult
    from vllm_surgery.localization.settings import SearchSettings

_TOP, _HEIGHT = 34, 280
_MIN_KL = 1e-4
"""Nats a token: what moves probabilities less stands at the left edge."""


def front_figure(found: SearchResult, settings: SearchSettings) -> str:
    """The figure."""
    points = [one for one in found.measured if one.kl is not None]
    most_kl = max([10 * _MIN_KL, settings.max_kl, *(one.kl or 0.0 for one in points)]) * 1.5
    scale = _Scale(most_kl, max([1, *(one.loops.looped for one in points), *(one.loops.base for one in points)]))
    parts = [*_axes(scale), *_bound(scale, settings.max_kl), *_base(scale, points)]
    parts += [_point(scale, one, COLORS[0]) for one in points]
    parts += [_line(scale, found.front)]
    if found.best is not None and found.best.kl is not None:
        parts.append(_point(scale, found.best, COLORS[1], 7))
    parts += legend(["looked at in full", "the one that was judged"], _TOP + _HEIGHT + 58)
    return svg(_TOP + _HEIGHT + 90, "Loops against side effects, search probes", parts)


class _Scale:
    """Places in the drawing: KL to the right, its logarithm; loops upwards."""

    def __init__(self, most_kl: float, most_loops: int) -> None:
        self.most_kl, self.most_loops = most_kl, most_loops

    def x(self, kl: float) -> float:
        share = math.log(max(kl, _MIN_KL) / _MIN_KL) / math.log(self.most_kl / _MIN_KL)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, loops: float) -> float:
        return _TOP + (1 - loops / self.most_loops) * _HEIGHT


def _axes(scale: _Scale) -> Iterable[str]:
    for quarter in range(5):
        loops = scale.most_loops * quarter / 4
        y = scale.y(loops)
        yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#8884"/>'
        yield text(LEFT - 10, y + 4, f"{loops:g}", anchor="end")
    for exponent in range(math.floor(math.log10(_MIN_KL)), math.floor(math.log10(scale.most_kl)) + 1):
        yield text(scale.x(10**exponent), _TOP + _HEIGHT + 18, f"{10**exponent:g}", anchor="middle")
    yield text(LEFT, _TOP + _HEIGHT + 36, "KL on reference replies, nats a token")
    yield text(LEFT - 10, _TOP - 14, "answers in a loop", anchor="end")


def _bound(scale: _Scale, most: float) -> Iterable[str]:
    x = scale.x(most)
    yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_TOP + _HEIGHT}" stroke="#888" stroke-dasharray="4"/>'
    yield text(x, _TOP - 6, "bound", anchor="middle")


def _base(scale: _Scale, points: Sequence[Measurement]) -> Iterable[str]:
    for base in {one.loops.base for one in points}:
        y = scale.y(base)
        yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{COLORS[4]}"/>'
        yield text(WIDTH - RIGHT, y - 5, "unpatched", anchor="end")


def _point(scale: _Scale, one: Measurement, color: str, size: int = 4) -> str:
    kl = one.kl or 0.0
    said = escape(f"{one.candidate}: {one.loops.looped} of {one.loops.answers}, KL {kl:.4f}")
    place = f'cx="{scale.x(kl):.1f}" cy="{scale.y(one.loops.looped):.1f}"'
    return f'<g><title>{said}</title><circle {place} r="{size}" fill="{color}"/></g>'


def _line(scale: _Scale, front: Sequence[Measurement]) -> str:
    places = [(scale.x(one.kl), scale.y(one.loops.looped)) for one in front if one.kl is not None]
    path = "L".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<path d="M{path}" fill="none" stroke="{COLORS[0]}"/>' if places else ""
