# SPDX-License-Identifier: Apache-2.0
"""The report's figures as SVG: plain text, no library, legible in light and dark."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from vllm_surgery.evaluation.analysis.statistics import survival
from vllm_surgery.intervals import Estimate, wilson

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vllm_surgery.evaluation.analysis.summary import ArmSummary, Summary
    from vllm_surgery.evaluation.records import Record

COLORS = ("#4477aa", "#ee6677", "#999933", "#aa3377", "#228833", "#66ccee")
"""Paul Tol's bright scheme, which the colour-blind can tell apart; its grey and yellow are too faint on white."""

WIDTH, LEFT, RIGHT = 860, 230, 30
_ROW, _TOP, _BAND = 15, 34, 10
_PLOT_HEIGHT = 260


@dataclass(frozen=True)
class Series:
    """One colour of a figure: an arm, or all shams together."""

    name: str
    arms: list[ArmSummary]

    def rate(self, group: str) -> Estimate | None:
        """The share of its answers of a probe or group that end in a loop."""
        found = [arm.by_probe[group] for arm in self.arms if group in arm.by_probe]
        total = sum(rates.answers for rates in found)
        looped = sum(round(rates.looped.value * rates.answers) for rates in found)
        return wilson(looped, total) if total else None


def series_of(summary: Summary) -> list[Series]:
    """The arms, the shams of each patch as one."""
    series: dict[str, list[ArmSummary]] = {}
    for one in summary.arms:
        name = one.arm.name if one.arm.kind != "sham" else f"shams of {one.arm.control_of}"
        series.setdefault(name, []).append(one)
    return [Series(name, arms) for name, arms in series.items()]


def rates_figure(summary: Summary) -> str:
    """Loop rates of each probe, by arm, with Wilson's intervals."""
    series = series_of(summary)
    groups = list(summary.arms[0].by_probe)
    block = _ROW * len(series) + _BAND
    height = _TOP + block * len(groups) + 30 + 16 * len(series)
    parts = [_axis(_TOP - 8, height - 16 * len(series) - 26)]
    for number, group in enumerate(groups):
        top = _TOP + number * block
        parts.append(text(LEFT - 10, top + block / 2 - 2, group, anchor="end"))
        for place, one in enumerate(series):
            rate = one.rate(group)
            if rate is not None:
                parts.append(_whisker(rate, top + place * _ROW + 4, _color(place), f"{one.name}, {group}"))
    parts += legend([one.name for one in series], height - 16 * len(series) - 4)
    return svg(height, "Answers that end in a loop, by probe and arm", parts)


def onset_figure(summary: Summary, records: Sequence[Record]) -> str:
    """The share of answers not yet in a loop, over the tokens: Kaplan-Meier curves of the judged answers."""
    series = series_of(summary)
    longest = max((len(record.token_ids) for record in records), default=1)
    height = _TOP + _PLOT_HEIGHT + 44 + 16 * len(series)
    parts = [_frame(longest)]
    for place, one in enumerate(series):
        parts.append(_curve(_pooled(one), longest, _color(place), one.name))
    parts += legend([one.name for one in series], _TOP + _PLOT_HEIGHT + 52)
    return svg(height, "Share of answers not yet in a loop, by tokens", parts)


def _pooled(series: Series) -> list[tuple[int, float]]:
    answers = [answer for one in series.arms for answer in one.onsets]
    return survival(answers) if answers else [(0, 1.0)]


def _color(place: int) -> str:
    return COLORS[place % len(COLORS)]


def _across(share: float) -> float:
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _down(share: float) -> float:
    return _TOP + (1 - share) * _PLOT_HEIGHT


def _axis(top: float, bottom: float) -> str:
    parts = []
    for percent in range(0, 101, 20):
        x = _across(percent / 100)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}" stroke="#8884"/>')
        parts.append(text(x, top - 8, f"{percent} %", anchor="middle"))
    return "".join(parts)


def _frame(longest: int) -> str:
    parts = []
    for percent in range(0, 101, 20):
        y = _down(percent / 100)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#8884"/>')
        parts.append(text(LEFT - 10, y + 4, f"{percent} %", anchor="end"))
    for quarter in range(5):
        x = _across(quarter / 4)
        parts.append(text(x, _TOP + _PLOT_HEIGHT + 18, f"{longest * quarter // 4}", anchor="middle"))
    parts.append(text(LEFT, _TOP + _PLOT_HEIGHT + 34, "tokens of the answer"))
    return "".join(parts)


def _curve(steps: Iterable[tuple[int, float]], longest: int, color: str, name: str) -> str:
    path, last = [f"M{_across(0):.1f},{_down(1):.1f}"], 1.0
    for token, share in steps:
        x = _across(min(1.0, token / longest))
        path.append(f"L{x:.1f},{_down(last):.1f}L{x:.1f},{_down(share):.1f}")
        last = share
    path.append(f"L{_across(1):.1f},{_down(last):.1f}")
    title = f"<title>{escape(name)}</title>"
    return f'<path d="{"".join(path)}" fill="none" stroke="{color}" stroke-width="2">{title}</path>'


def _whisker(rate: Estimate, y: float, color: str, name: str) -> str:
    low, value, high = (_across(share) for share in (rate.low, rate.value, rate.high))
    said = f"{name}: {100 * rate.value:.0f} % ({100 * rate.low:.0f} to {100 * rate.high:.0f})"
    return (
        f"<g><title>{escape(said)}</title>"
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="{color}" stroke-width="2"/>'
        f'<circle cx="{value:.1f}" cy="{y:.1f}" r="4" fill="{color}"/></g>'
    )


def legend(names: Sequence[str], top: float) -> list[str]:
    """The meaning of each colour, one below the other, in the order of `COLORS`."""
    parts = []
    for place, name in enumerate(names):
        y = top + 16 * place
        parts.append(f'<circle cx="{LEFT + 6}" cy="{y - 4:.1f}" r="5" fill="{_color(place)}"/>')
        parts.append(text(LEFT + 18, y, name))
    return parts


def text(x: float, y: float, words: str, anchor: str = "start") -> str:
    """Words at a place; `anchor` says whether they start, end or are centred there."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def svg(height: float, title: str, parts: Iterable[str]) -> str:
    """A whole drawing, `WIDTH` wide."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img"'
    style = ' font-family="sans-serif" font-size="12" fill="#888888"'
    return f"{head}{style}><title>{escape(title)}</title>{''.join(parts)}</svg>\n"
