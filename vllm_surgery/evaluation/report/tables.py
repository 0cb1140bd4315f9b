# SPDX-License-Identifier: Apache-2.0
"""The report's tables."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from vllm_surgery.evaluation.analysis.summary import JUDGED
from vllm_surgery.evaluation.report.blocks import Table, Words
from vllm_surgery.loops import KINDS

if TYPE_CHECKING:
    from vllm_surgery.evaluation.analysis.outcomes import Rates
    from vllm_surgery.evaluation.analysis.side_effects import Healthy, Ordinary, Tasks
    from vllm_surgery.evaluation.analysis.statistics import Paired
    from vllm_surgery.evaluation.analysis.summary import ArmSummary, Summary
    from vllm_surgery.evaluation.analysis.tail_judge import Agreement, Disagreement
    from vllm_surgery.evaluation.arms import Arm
    from vllm_surgery.evaluation.report.blocks import ReportBlock
    from vllm_surgery.intervals import Estimate

_UNITS_SHOWN = 3
_MIN_P = 0.001


def arms_table(summary: Summary) -> Table:
    """The arms that were compared."""
    rows = [[one.arm.name, one.arm.kind, one.arm.id or "", _remarks(one.arm)] for one in summary.arms]
    return Table(["arm", "kind", "patch id", ""], rows)


def cells_table(summary: Summary) -> Table:
    """The cells: probe sets and their sampling."""
    rows = [[cell["name"], ", ".join(cell["sets"]), str(cell["seeds"]), *_sampling(cell)] for cell in _cells(summary)]
    return Table(["cell", "probe sets", "seeds", "temperature", "top-p", "top-k", "tokens", "thinking"], rows)


def rates_table(summary: Summary, group: str) -> Table:
    """Counts and rates of answers that end in loops."""
    head = ["arm", "answers", *KINDS, "any", "rate", "left", "ever in a loop", "cut by budget", "mean tokens"]
    rows = [[one.arm.name, *_rates(one.rates[group])] for one in summary.arms]
    return Table([*head, "wasted", "entries"], rows)


def against_table(summary: Summary, group: str) -> Table:
    """Each arm against the unpatched one."""
    over = next((one.against[group].unit for one in summary.arms if group in one.against), "probes")
    head = ["arm", "pairs", "rescued", "newly", "both", "McNemar p", f"p over {over}", "difference in points", "ratio"]
    rows = [
        [one.arm.name, *_paired(one.against[group]), points(one.ever_against[group].difference)]
        for one in summary.arms
        if group in one.against
    ]
    return Table([*head, "needed", "difference, ever in a loop"], rows)


def judges_table(summary: Summary) -> list[ReportBlock]:
    """The two judges side by side, and the answers about which they disagree."""
    judged = [(one, one.judges) for one in summary.arms if one.judges is not None]
    if not judged:
        return []
    rows = [[one.arm.name, *_judges(one.rates[JUDGED], judges), _tail(one.tail_against)] for one, judges in judged]
    head = ["arm", "answers", "detectors", "tail judge", "both", "detectors only", "tail judge only"]
    blocks: list[ReportBlock] = [Table([*head, "difference in points, tail judge"], rows)]
    for one, judges in judged:
        if judges.disagreements:
            blocks.append(Words(f"They disagree, **{one.arm.name}**:", [_said(each) for each in judges.disagreements]))
    return blocks


def tasks_table(summary: Summary) -> list[ReportBlock]:
    """Short lists and skills."""
    blocks: list[ReportBlock] = []
    for name, first in summary.arms[0].tasks.items():
        rows = [[one.arm.name, *_tasks(one.tasks[name])] for one in summary.arms]
        blocks += [Words(f"**{name}**: {first.tasks} tasks with a known answer"), Table(_TASKS_HEAD, rows)]
    return blocks


def ordinary_table(summary: Summary) -> list[ReportBlock]:
    """Ordinary requests."""
    rows = [[one.arm.name, *_ordinary(one.ordinary)] for one in summary.arms if one.ordinary is not None]
    head = ["arm", "answers", "end in a loop", "ever in a loop", "mean tokens", "length", "cut by budget", "same text"]
    return [Words("**healthy prompts**: ordinary requests"), Table(head, rows)] if rows else []


def healthy_table(summary: Summary) -> list[ReportBlock]:
    """Next-token probabilities on healthy text."""
    exact = [[one.arm.name, *_healthy(one.exact)] for one in summary.arms if one.exact is not None]
    told = [row for one in summary.arms if (row := _told(one))]
    blocks: list[ReportBlock] = []
    if told:
        note = (
            "**next-token probabilities on healthy text**, as the server tells them: the likeliest tokens of each "
            "place; the others are taken together (`rest`: their probability, on average), so the divergence is a "
            "lower bound. Perplexity is exact."
        )
        blocks += [Words(note), Table(_HEALTHY_HEAD, told)]
    if exact:
        blocks += [Words("**the same over the whole vocabulary**, float32, exact"), Table(_HEALTHY_HEAD, exact)]
    return blocks


def _told(one: ArmSummary) -> list[str]:
    """The row of an arm whose probabilities were asked for; empty for others."""
    if one.other_tokens:
        return [one.arm.name, "", "", "not comparable: other tokens", "", "", "", ""]
    return [] if one.healthy is None else [one.arm.name, *_healthy(one.healthy)]


_TASKS_HEAD = ["arm", "right", "lost", "won", "McNemar p", "same text", "same form"]
_HEALTHY_HEAD = ["arm", "texts", "tokens", "KL(unpatched, arm), nats a token", "rest", "same first choice"]
_HEALTHY_HEAD += ["perplexity unpatched", "perplexity"]


def _remarks(arm: Arm) -> str:
    shown = ", ".join(arm.units[:_UNITS_SHOWN]) + (", \u2026" if len(arm.units) > _UNITS_SHOWN else "")
    ratio = "" if arm.norm_ratio is None else f"; norm {arm.norm_ratio:.2f} of the patch's"
    extra = ", ".join(_setting(name, value) for name, value in arm.sampling.items())
    return shown + ratio + extra


def _setting(name: str, value: Any) -> str:
    if isinstance(value, dict):  # What is said to the plugin.
        return ", ".join(f"{key} {said}" for key, said in value.items())
    if isinstance(value, bool):
        return name
    return f"{name} {value:g}"


def _cells(summary: Summary) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = summary.protocol["cells"]
    return cells


def _sampling(cell: dict[str, Any]) -> list[str]:
    thinking = {True: "on", False: "off", None: ""}[cell.get("thinking")]
    return [*(f"{cell[name]:g}" for name in ("temperature", "top_p", "top_k", "max_tokens")), thinking]


def _rates(rates: Rates) -> list[str]:
    return [
        str(rates.answers),
        *(str(rates.terminal[kind]) for kind in KINDS),
        str(round(rates.looped.value * rates.answers)),
        _percent(rates.looped),
        str(rates.escaped),
        _percent(rates.ever),
        str(rates.cut),
        f"{rates.tokens / rates.answers:.0f}",
        f"{100 * rates.wasted / rates.tokens:.0f} %" if rates.tokens else "",
        f"{rates.entries:g}",
    ]


def _judges(rates: Rates, judges: Agreement) -> list[str]:
    alone = [bool(one.kinds) for one in judges.disagreements]
    counts = (judges.both, sum(alone), len(alone) - sum(alone))
    return [str(judges.answers), _percent(rates.looped), _percent(judges.looped), *map(str, counts)]


def _tail(paired: Paired | None) -> str:
    return "" if paired is None else points(paired.difference)


def _said(one: Disagreement) -> str:
    """One answer. Its text can't end the code that it stands in."""
    who = ", ".join(one.kinds) if one.kinds else "tail judge only"
    end = one.end.replace("`", "'")
    return f"{one.cell}/{one.set}/{one.probe}, seed {one.seed}, {who}: `{end}`"


def _paired(paired: Paired) -> list[str]:
    return [
        *map(str, (paired.pairs, paired.rescued, paired.newly, paired.both)),
        _p(paired.p),
        _p(paired.clustered_p),
        points(paired.difference),
        _ratio(paired.ratio),
        "" if paired.needed is None else f"{paired.needed} ({math.ceil(paired.needed / paired.probes)} a probe)",
    ]


def _tasks(tasks: Tasks) -> list[str]:
    lost, won = (f"{len(names)}" + (f" ({', '.join(names)})" if names else "") for names in (tasks.lost, tasks.won))
    return [str(tasks.right), lost, won, _p(tasks.p), str(tasks.same), str(tasks.form)]


def _ordinary(ordinary: Ordinary) -> list[str]:
    rates = ordinary.rates
    counts = (rates.answers, round(rates.looped.value * rates.answers), round(rates.ever.value * rates.answers))
    mean = f"{rates.tokens / rates.answers:.0f}"
    return [*map(str, counts), mean, f"{ordinary.length:.2f}", str(rates.cut), str(ordinary.same)]


def _healthy(found: Healthy) -> list[str]:
    shares = [f"{100 * found.rest:.1f} %", f"{100 * found.agreement:.1f} %"]
    return [
        str(found.texts),
        str(found.tokens),
        nats(found.kl),
        *shares,
        f"{found.base_perplexity:.3f}",
        f"{found.perplexity:.3f}",
    ]


def _percent(rate: Estimate) -> str:
    return f"{100 * rate.value:.1f} % ({100 * rate.low:.1f} to {100 * rate.high:.1f})"


def points(found: Estimate, digits: int = 1) -> str:
    """A difference of two rates in points, with its interval if it has one."""
    value, low, high = (f"{100 * number:+.{digits}f}" for number in (found.value, found.low, found.high))
    return value if math.isnan(found.low) else f"{value} ({low} to {high})"


def nats(found: Estimate, unit: str = "") -> str:
    """A divergence, with its interval if it has one."""
    interval = "" if math.isnan(found.low) else f" ({found.low:.4f} to {found.high:.4f})"
    return f"{found.value:.4f}{unit}{interval}"


def _ratio(found: Estimate) -> str:
    if math.isnan(found.value):
        return ""
    if math.isnan(found.low):
        return f"{found.value:.2f}"
    high = "\u221e" if math.isinf(found.high) else f"{found.high:.2f}"
    return f"{found.value:.2f} ({found.low:.2f} to {high})"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= _MIN_P else f"< {_MIN_P}"
