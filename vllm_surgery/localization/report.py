# SPDX-License-Identifier: Apache-2.0
"""The report of a search: what was looked at, what came of it, and the whole held-out trial."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_surgery.evaluation.report.blocks import Figure, Section, Table, Words
from vllm_surgery.evaluation.report.write import sections_of, write_page
from vllm_surgery.evaluation.trial import TrialFolder
from vllm_surgery.localization.figure import front_figure
from vllm_surgery.localization.held_out import cells_and_kinds
from vllm_surgery.localization.pipeline import FOUND_FILE, HELD_OUT_FOLDER
from vllm_surgery.localization.search.search import block_of, told_spent
from vllm_surgery.loops import KINDS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vllm_surgery.evaluation.records import Way
    from vllm_surgery.evaluation.report.blocks import ReportBlock
    from vllm_surgery.localization.pipeline import Outcome, SearchRun
    from vllm_surgery.localization.search.measurements import Measurement
    from vllm_surgery.localization.settings import SearchSettings

SHOWN = 24
"""Rows of a table: what comes behind the best two dozen says little. `search.json` has all."""

BOUNDS = (
    "An edit may cost at most {kl:g} nats a token of KL divergence on reference replies, a perplexity {perplexity:g} "
    "times the model's own, no more tasks lost than won, and a quarter of the different entries of its lists. Of those "
    "within the bounds the one with the fewest loops is judged, once, on probes that the search never saw."
)


def write_report(outcome: Outcome, settings: SearchSettings, run: SearchRun) -> dict[str, Path]:
    """Writes ``report.html`` and ``report.md`` with its figures into the search's folder.

    Returns:
        What was written, by kind.

    Raises:
        UsageError: it can't be written.
    """
    parts = [_asked(outcome, run), _came_of_it(outcome, settings), _layers(outcome), _candidates(outcome, settings)]
    parts += [_choice(outcome), *_held_out(outcome, run)]
    sections = [part for part in parts if part.blocks]
    files = write_page(f"Search for loop units of {outcome.about['model']}", sections, run.folder)
    return files | {"figures": run.folder / FOUND_FILE}


def _asked(outcome: Outcome, run: SearchRun) -> Section:
    about, found = outcome.about, outcome.search
    looks, parts = counted(found.evaluations), told_spent(found.spent)
    points = [
        f"**Model**: {about['model']}, sha256 over config and weights {about['fingerprint']}",
        f"**Engine**: {about['engine']}, vllm-surgery {about['vllm_surgery']}",
        f"**Command**: `{run.command}`",
        f"**Spent**: {outcome.spent_answers} answers in {outcome.spent_minutes:.0f} minutes, held-out trial apart"
        + (f": {', '.join(f'{part} {said}' for part, said in parts.items())}" if parts else ""),
        f"**Unpatched**: {_share(found.base.looped.value)} of {found.base.answers} answers to search probes end in a "
        f"loop ({', '.join(f'{count} {kind}' for kind, count in found.base.terminal.items())}), say the detectors; "
        f"{found.looping} do, say they or the second judge",
        f"**Looks at candidates**: {looks or 'none'}",
        *([f"**Held**: {ways}"] if (ways := _ways(found.ways)) else []),
        *([f"**Not tried, for want of budget**: {untried}"] if (untried := counted(found.untried)) else []),
    ]
    notes = list(found.attribution.notes) if found.attribution is not None else []
    notes += found.notes
    notes += [f"refused: {reason}" for reason in found.refused[:SHOWN]]
    return Section("The search", [Words("", points), *([Words("Notes:", notes)] if notes else [])])


def counted(parts: Mapping[str, int]) -> str:
    """Counts of candidates by the part of a search, in words."""
    return ", ".join(f"{count} {part}" for part, count in parts.items())


def _ways(ways: Mapping[Way, int]) -> str:
    said: dict[Way, str] = {"slot": "in slots, several in one batch", "swap": "one by one, by swaps"}
    return ", ".join(f"{count} {said[way]}" for way, count in ways.items())


def _came_of_it(outcome: Outcome, settings: SearchSettings) -> Section:
    found, judged = outcome.search, outcome.held_out
    blocks: list[ReportBlock] = [Words(BOUNDS.format(kl=settings.max_kl, perplexity=settings.max_perplexity))]
    if found.best is None or judged is None:
        return Section("What came of it", [*blocks, Words(f"**No patch**: {found.why_none}.")])
    verdict = ", ".join(one.word for one in judged.summary.verdicts.values()) or "none"
    end = "The patch was written." if outcome.patch is not None else "**No patch was written.**"
    points = [
        f"chosen: {found.best.candidate}",
        f"on search probes: {found.best.loops.base} of {found.best.loops.answers} answers end in a loop without it, "
        f"{found.best.loops.looped} with it",
        f"verdict on held-out probes: **{verdict}**",
        *(f"a kind of loop became more frequent: {rise}" for rise in judged.rises),
        *judged.notes,
    ]
    return Section("What came of it", [*blocks, Words(end, points)])


def _layers(outcome: Outcome) -> Section:
    if not outcome.search.layers:
        return Section("Layers", [])
    kept = set(outcome.search.kept)
    rows = []
    for one in outcome.search.layers:
        block = block_of(one.candidate)
        rows.append([f"{block.kind}/{block.layer}", *_figures(one), "yes" if block in kept else ""])
    note = "Each layer's MLP, or its routed experts, silenced as a whole. Kept are those that loops need most."
    return Section("Layers", [Words(note), Table(["block", *_FIGURES, "kept"], rows)])


_FIGURES = [
    "answers",
    "loops without",
    "with",
    "rescued",
    "newly",
    *KINDS,
    "second judge",
    "late",
    "entries",
    "KL",
    "perplexity",
    "tasks",
]


def _candidates(outcome: Outcome, settings: SearchSettings) -> Section:
    found = outcome.search
    if not found.measured:
        return Section("Candidates", [])
    ranked = sorted(found.measured, key=lambda one: one.rank(settings))[:SHOWN]
    shown = {one.candidate.id: one for one in [*ranked, *found.front]}
    front = {one.candidate.id for one in found.front}
    rows = [
        [
            str(one.candidate),
            one.candidate.origin,
            *_figures(one),
            ", ".join(one.excess(settings)),
            "yes" if one.candidate.id in front else "",
        ]
        for one in shown.values()
    ]
    note = (
        f"The best of {len(found.measured)} that were looked at in full, on search probes alone. They were chosen by "
        "these figures, so the figures flatter them: what an edit does is in the held-out trial. `entries` and "
        "`perplexity` are ratios to the unpatched model; `tasks` is lost/won. Loops are what the detectors or the "
        "second judge say; `late` is the share of tokens that come before loops."
    )
    table = Table(["edit", "thought of by", *_FIGURES, "too much", "on the front"], rows)
    caption = "Loops against KL on search probes, with the Pareto front."
    return Section("Candidates", [Words(note), table, Figure("front.svg", caption, front_figure(found, settings))])


def _choice(outcome: Outcome) -> Section:
    if outcome.choice is None or not outcome.choice.finalists:
        return Section("Choice", [])
    chosen = outcome.choice.chosen
    rows = []
    for one in outcome.choice.finalists:
        mark = "yes" if chosen is not None and one.found.candidate == chosen.found.candidate else ""
        rows.append(["", str(one.found.candidate.units), str(one.found.candidate), *_figures(one.chosen_by), mark])
        if one.sham is not None:
            rows.append(["sham", str(one.sham.candidate.units), str(one.sham.candidate), *_figures(one.sham), ""])
    note = (
        "The best edit of each size, and the best of all, on probes, tasks and replies that the search never saw, each "
        "with a sham: random units of the same layers with the same gains. Of the edits within the bounds that leave "
        "hardly more loops than the best the one with the fewest units is chosen."
    )
    notes = [Words("Notes:", outcome.choice.notes)] if outcome.choice.notes else []
    return Section("Choice", [Words(note), Table(["", "units", "edit", *_FIGURES, "chosen"], rows), *notes])


def _held_out(outcome: Outcome, run: SearchRun) -> list[Section]:
    if outcome.held_out is None or outcome.search.best is None:
        return []
    folder = TrialFolder(run.folder / HELD_OUT_FOLDER)
    trial, records = folder.trial(), folder.records()
    cells = cells_and_kinds(trial, records, run.name)
    rows = [
        [one.cell, one.kind, str(one.answers), str(one.before), str(one.after), str(one.rescued), str(one.newly)]
        for one in cells
    ]
    head = ["cell", "kind", "answers", "unpatched", "patched", "rescued", "newly"]
    by_kind = Section("Held out: each kind of loop in each cell", [Table(head, rows)])
    rest = sections_of(outcome.held_out.summary, trial, records)
    return [by_kind, *(Section(f"Held out: {one.title[0].lower()}{one.title[1:]}", one.blocks) for one in rest)]


def _figures(one: Measurement) -> list[str]:
    loops, cost = one.loops, one.cost
    kinds = [f"{before} to {after}" for before, after in (loops.kinds[kind] for kind in KINDS)]
    kinds += [f"{loops.repeats[0]} to {loops.repeats[1]}", f"{loops.late:.2f}"]
    counts = [str(count) for count in (loops.answers, loops.base, loops.looped, loops.rescued, loops.newly)]
    if cost is None:
        return [*counts, *kinds, f"{loops.entries:.2f}", "", "", ""]
    tasks = "" if cost.lost is None else f"{cost.lost}/{cost.won}"
    return [*counts, *kinds, f"{loops.entries:.2f}", f"{cost.kl:.4f}", f"{cost.perplexity:.3f}", tasks]


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"
