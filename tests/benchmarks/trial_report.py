# SPDX-License-Identifier: Apache-2.0
"""The figures of a trial of a cure, in one page: what is told is told of complete cells alone."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from statistics import mean
from typing import TYPE_CHECKING, Any

from tests.benchmarks.markdown import table
from vllm_surgery.evaluation.analysis.outcomes import Rates, loops
from vllm_surgery.evaluation.analysis.statistics import Paired, compare, ratio_over_groups
from vllm_surgery.evaluation.analysis.summary import finite, summarize
from vllm_surgery.evaluation.analysis.tail_judge import ends_in_repeats
from vllm_surgery.evaluation.arms import UNPATCHED
from vllm_surgery.evaluation.backends.base import Completion, Job
from vllm_surgery.evaluation.report.tables import nats, points
from vllm_surgery.evaluation.trial import Trial, TrialFolder, record_of
from vllm_surgery.intervals import wilson

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from vllm_surgery.evaluation.analysis.summary import ArmSummary, Summary
    from vllm_surgery.evaluation.probes import Probe
    from vllm_surgery.evaluation.protocol import Cell
    from vllm_surgery.evaluation.records import Record
    from vllm_surgery.intervals import Estimate
    from vllm_surgery.loops import TokenTable

WEIGHTS = "weights"
"""Beside a trial's own files, the answers of the patch in the weights."""
REPORT_FILE, FIGURES_FILE = "trial.md", "figures.json"

_HEAD = [
    "arm", "end in a loop", "by kind", "second judge", "difference, points", "tokens an answer", "in loops, of all tokens",
    "entries", "right entries", "sound answers that are the same",
]  # fmt: skip
_NOTE = (
    "Intervals are 95 %, from a bootstrap over subjects; of a rate of 0 or 100 %, where that has no width, Wilson's of as many "
    "subjects. A difference that is the same for all of them has none. `difference`: of the answers that end in a loop, by the detectors "
    "and by the second judge, against the unpatched model. `entries`: different ones of the middle answer. `right entries`: "
    "different ones, on average, of the lists that have an end. `sound`: answers in which the unpatched model is in no loop."
)


@dataclass(frozen=True)
class CellFigures:
    """One arm's answers of one cell that are for loops.

    Attributes:
        rates: by the detectors.
        looped: share that ends in a loop, its interval over subjects: Wilson's where none does, or all do.
        repeats: the same, says the second judge.
        against: the unpatched arm, by the detectors; None for itself.
        repeats_against: likewise, by the second judge.
        right: right entries of an answer, on average; None where no list has an end.
        sound: answers that are in no loop unpatched.
        same: of these, how many are the same, token for token.
    """

    arm: str
    rates: Rates
    looped: Estimate
    repeats: Estimate
    against: Paired | None
    repeats_against: Paired | None
    right: float | None
    sound: int
    same: int


def write(out: Path, tokens: TokenTable) -> str:
    """Writes ``trial.md`` and ``figures.json`` into a trial's folder.

    Args:
        out: the folder.
        tokens: of the model, in which the detectors, as they are now, look for loops again.

    Returns:
        The page.
    """
    folder = TrialFolder(out)
    own = [arm.name for arm in folder.trial().arms if arm.url is None]  # Another server's model has its own tokens.
    found = [looked_into(one, tokens) if one.key.arm in own else one for one in folder.records()]
    trial, records = finished(folder.trial(), found)
    lines = [f"# Trial of {trial.about['model']}", "", *_asked(folder.trial(), trial)]
    if not trial.protocol.cells:
        return "\n".join([*lines, "", "**No result yet**: the first cell isn't complete."])
    summary = summarize(trial, records, folder.logprobs())
    cells = {cell.name: cell_figures(trial, cell, records) for cell in trial.protocol.cells}
    for cell in trial.protocol.cells:
        if cells[cell.name]:
            lines += ["", f"## {_named(cell)}", "", *table(_HEAD, [_row(one) for one in cells[cell.name]])]
            lines += _by_prompt(trial, cell, records) if cell.seeds > 1 else []
    lines += ["", _NOTE, *_tasks(summary), *_healthy(summary), *_agreement(out), *_verdicts(summary)]
    figures = {"about": trial.about, "cells": finite(json.loads(json.dumps(cells, default=vars)))}
    (out / FIGURES_FILE).write_text(json.dumps(figures, indent=1) + "\n")
    (out / REPORT_FILE).write_text("\n".join(lines) + "\n")
    return "\n".join(lines)


def looked_into(record: Record, tokens: TokenTable) -> Record:
    """An answer with what the detectors find in it now: they may be newer than the answer."""
    job = Job(record.key, record.prompt, record.sampling)
    said = Completion(record.text, record.token_ids, record.finish)
    return record_of(job, said, record.patch, tokens, record.way)


def finished(trial: Trial, records: Sequence[Record]) -> tuple[Trial, list[Record]]:
    """The trial cut to the cells of which every answer is there, and these answers."""
    there = {record.key for record in records}
    jobs = [job for arm in trial.arms for job in trial.jobs(arm)]
    missing = {job.key.cell for job in jobs if job.key not in there}
    cells = [cell for cell in trial.protocol.cells if cell.name not in missing]
    kept = {cell.name for cell in cells}
    cut = replace(trial, protocol=trial.protocol.model_copy(update={"cells": cells}))
    return cut, [record for record in records if record.key.cell in kept]


def cell_figures(trial: Trial, cell: Cell, records: Sequence[Record]) -> list[CellFigures]:
    """The figures of every arm; none of a cell that asks for no lists."""
    probes = {
        (name, probe.id): probe
        for name in cell.sets
        if trial.sets[name].use == "loops"
        for probe in trial.sets[name].probes
    }
    answers: dict[str, dict[tuple[str, str, int], Record]] = {arm.name: {} for arm in trial.arms}
    for record in records:
        if record.key.cell == cell.name and record.key[2:4] in probes:
            answers[record.key.arm][record.key[2:]] = record
    places = list(answers[UNPATCHED])
    if not places:
        return []
    probes_of = [probes[place[:2]] for place in places]
    by_arm = {arm: [known[place] for place in places] for arm, known in answers.items()}
    return [_figures(arm, probes_of, by_arm[UNPATCHED], found) for arm, found in by_arm.items()]


def _figures(arm: str, probes: Sequence[Probe], base: Sequence[Record], found: Sequence[Record]) -> CellFigures:
    subjects = [probe.subject or probe.id for probe in probes]
    other = arm != UNPATCHED
    ended = [
        len(probe.short_list().named_in(record.text))
        for probe, record in zip(probes, found, strict=True)
        if probe.items
    ]
    sound = [(one, two) for one, two in zip(base, found, strict=True) if not one.loops]
    return CellFigures(
        arm=arm,
        rates=Rates.of(found),
        looped=_share(found, subjects, loops),
        repeats=_share(found, subjects, ends_in_repeats),
        against=_compared(base, found, subjects, loops) if other else None,
        repeats_against=_compared(base, found, subjects, ends_in_repeats) if other else None,
        right=mean(ended) if ended else None,
        sound=len(sound),
        same=sum(one.token_ids == two.token_ids for one, two in sound),
    )


def _share(records: Sequence[Record], subjects: Sequence[str], happens: Callable[[Record], bool]) -> Estimate:
    sums = dict.fromkeys(subjects, 0)
    counts = dict.fromkeys(subjects, 0)
    for record, subject in zip(records, subjects, strict=True):
        sums[subject] += happens(record)
        counts[subject] += 1
    found = ratio_over_groups(list(sums.values()), list(counts.values()))
    return found if 0 < found.value < 1 else wilson(round(found.value) * len(sums), len(sums))


def _compared(
    base: Sequence[Record], found: Sequence[Record], subjects: Sequence[str], happens: Callable[[Record], bool]
) -> Paired:
    probes = [f"{record.key.set}/{record.key.probe}" for record in found]
    return compare(list(map(happens, base)), list(map(happens, found)), subjects, probes)


def _by_prompt(trial: Trial, cell: Cell, records: Sequence[Record]) -> list[str]:
    """How many of each prompt's answers, which differ by their seeds, end in a loop under each arm."""
    prompts = dict.fromkeys(one.key.probe for one in records if one.key.cell == cell.name)
    rows = []
    for prompt in prompts:
        own = [one for one in records if (one.key.cell, one.key.probe) == (cell.name, prompt)]
        counts = (sum(map(loops, (one for one in own if one.key.arm == arm.name))) for arm in trial.arms)
        rows.append([prompt, *map(str, counts)])
    head = [f"of {cell.seeds} answers to", *(arm.name for arm in trial.arms)]
    return ["", "How many end in a loop:", "", *table(head, rows)]


def _asked(whole: Trial, cut: Trial) -> list[str]:
    left_out = [cell.name for cell in whole.protocol.cells if cell not in cut.protocol.cells]
    about = whole.about
    said = [
        f"- {about['engine']}, vllm-surgery {about['vllm_surgery']}, sha256 over config and weights {about['fingerprint']}",
        f"- prompts as {whole.protocol.form}s; {_sets(whole)}",
    ]
    return said + ([f"- not complete, and so not told: {', '.join(left_out)}"] if left_out else [])


def _sets(trial: Trial) -> str:
    names = dict.fromkeys(name for cell in trial.protocol.cells for name in cell.sets)
    return f"protocol `{trial.protocol.name}`: {', '.join(f'`{name}`' for name in names)}"


def _named(cell: Cell) -> str:
    how = "greedy" if cell.temperature == 0 else f"temperature {cell.temperature:g}"
    return f"{cell.name}: {how}, {cell.max_tokens} tokens"


def _row(one: CellFigures) -> list[str]:
    rates = one.rates
    kinds = ", ".join(f"{count} {kind}" for kind, count in rates.terminal.items() if count)
    return [
        one.arm,
        _rate(one.looped, rates.answers),
        kinds,
        _rate(one.repeats, rates.answers),
        "" if one.against is None else f"{_points(one.against)}; {_points(one.repeats_against)}",
        f"{rates.tokens / rates.answers:.0f}",
        f"{100 * rates.wasted / rates.tokens:.0f} %",
        f"{rates.entries:g}",
        "" if one.right is None else f"{one.right:.1f}",
        f"{one.same} of {one.sound}",
    ]


def _rate(found: Estimate, answers: int) -> str:
    interval = "" if math.isnan(found.low) else f" ({100 * found.low:.0f} to {100 * found.high:.0f})"
    return f"{round(found.value * answers)} of {answers}: {100 * found.value:.0f} %{interval}"


def _points(found: Paired | None) -> str:
    return "" if found is None else points(found.difference, digits=0)


def _tasks(summary: Summary) -> list[str]:
    rows = [
        [one.arm.name, *(word for tasks in one.tasks.values() for word in _judged(tasks))]
        for one in summary.arms
        if one.tasks
    ]
    if not rows:
        return []
    head = ["arm", *(word for name in summary.arms[0].tasks for word in (f"{name}: right", "lost", "won"))]
    return ["", "## Tasks", "", *table(head, rows)]


def _judged(tasks: Any) -> list[str]:
    return [f"{tasks.right} of {tasks.tasks}", str(len(tasks.lost)), str(len(tasks.won))]


def _healthy(summary: Summary) -> list[str]:
    rows = [_moved(one) for one in summary.arms if one.healthy is not None]
    head = ["arm", "KL, nats a token, from below", "perplexity unpatched", "perplexity"]
    return ["", "## Reference replies", "", *table(head, rows)] if rows else []


def _moved(one: ArmSummary) -> list[str]:
    assert one.healthy is not None
    return [one.arm.name, nats(one.healthy.kl), f"{one.healthy.base_perplexity:.3f}", f"{one.healthy.perplexity:.3f}"]


def _agreement(out: Path) -> list[str]:
    """How many answers of the patch in the weights are those of the patch in its slot, token for token."""
    if not (out / WEIGHTS).exists():
        return []
    slot = {record.key: record for record in TrialFolder(out).records()}
    pairs = [(one, slot[one.key]) for one in TrialFolder(out / WEIGHTS).records() if one.key in slot]
    same = {arm: _same(pairs, arm) for arm in dict.fromkeys(one.key.arm for one, _ in pairs)}
    said = [f"- {arm}: {count} of {total}" for arm, (count, total) in same.items()]
    return ["", "## The same tokens from a server without slots, the patch in its weights", "", *said]


def _same(pairs: Sequence[tuple[Record, Record]], arm: str) -> tuple[int, int]:
    own = [one.token_ids == two.token_ids for one, two in pairs if one.key.arm == arm]
    return sum(own), len(own)


def _verdicts(summary: Summary) -> list[str]:
    lines = []
    for name, verdict in summary.verdicts.items():
        lines += ["", f"## Verdict on {name}, all cells together: {verdict.word}", ""]
        lines += [f"- {one.says}: {_MARKS[one.holds]}" for one in verdict.conditions]
    return lines


_MARKS: Mapping[bool | None, str] = {True: "holds", False: "doesn't hold", None: "not asked"}
