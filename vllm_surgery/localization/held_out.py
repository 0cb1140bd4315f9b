# SPDX-License-Identifier: Apache-2.0
"""The held-out trial: the edit that was found, once, on probes that the search never saw, with shams and a penalty."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_surgery.errors import UsageError
from vllm_surgery.evaluation.analysis.outcomes import terminal_kinds
from vllm_surgery.evaluation.analysis.statistics import mcnemar
from vllm_surgery.evaluation.analysis.summary import JUDGED, summarize
from vllm_surgery.evaluation.arms import UNPATCHED, of_patch, of_penalty, shams_of, unpatched
from vllm_surgery.evaluation.report.tables import nats, points
from vllm_surgery.evaluation.report.write import write_report
from vllm_surgery.evaluation.trial import Trial, TrialFolder, run_trial
from vllm_surgery.loops import KINDS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vllm_surgery.evaluation.analysis.summary import ArmSummary, Summary
    from vllm_surgery.evaluation.arms import Arm
    from vllm_surgery.evaluation.backends.base import Backend
    from vllm_surgery.evaluation.records import Record
    from vllm_surgery.localization.settings import SearchSettings
    from vllm_surgery.loops import TokenTable
    from vllm_surgery.model.checkpoint import ModelFolder
    from vllm_surgery.patch.format import Patch

ALPHA = 0.05
"""Of McNemar's test: a kind of loop that rises in one cell with a p below it isn't made up for by others."""
HOLDS = "fewer loops"


@dataclass(frozen=True)
class TrialContext:
    """The surroundings of a held-out trial.

    Attributes:
        backend: who answers.
        table: what the model's tokens are as text.
        folder: where answers and report go.
        about: what the report says of the model.
        quiet: no progress.
    """

    backend: Backend
    table: TokenTable
    folder: Path
    about: Mapping[str, Any]
    quiet: bool = False


@dataclass(frozen=True)
class HeldOutResult:
    """A held-out trial.

    Attributes:
        summary: all its figures.
        rises: kinds of loop that became more frequent in one cell, in words.
        holds: whether the edit is called a help, without a cost, and no kind rose.
        notes: what couldn't be done as asked.
    """

    summary: Summary
    rises: list[str]
    holds: bool
    notes: list[str]


@dataclass(frozen=True)
class CellKind:
    """Answers of one cell that end in one kind of loop, without and with the patch."""

    cell: str
    kind: str
    answers: int
    before: int
    after: int
    rescued: int
    newly: int

    @property
    def rises(self) -> bool:
        """True if there are significantly more with the patch."""
        return self.newly > self.rescued and mcnemar(self.rescued, self.newly) < ALPHA


def run_held_out_trial(
    patch: Patch, model: ModelFolder, settings: SearchSettings, context: TrialContext
) -> HeldOutResult:
    """Asks the held-out probes of every arm, and judges.

    Args:
        patch: the edit.
        model: its model's folder.
        settings: of the search.
        context: who is asked, and where answers are kept. What is there isn't asked again.

    Raises:
        SurgeryError: somebody couldn't answer.
    """
    shams, notes = _shams(patch, model, settings)
    arms = [unpatched(), of_patch(patch), *shams, of_penalty(settings.penalty)]
    trial = Trial.of(settings.held_out_protocol(), arms, context.about)
    kept = TrialFolder(context.folder)
    run_trial(trial, context.backend, kept, context.table, quiet=context.quiet)
    records = kept.records()
    summary = summarize(trial, records, kept.logprobs())
    write_report(summary, trial, records, context.folder)
    cells = cells_and_kinds(trial, records, patch.name)
    rises = [
        f"{one.kind} loops, {one.cell}: {one.before} to {one.after} of {one.answers}" for one in cells if one.rises
    ]
    verdict = summary.verdicts.get(patch.name)
    return HeldOutResult(summary, rises, verdict is not None and verdict.word == HOLDS and not rises, notes)


def cells_and_kinds(trial: Trial, records: Sequence[Record], arm: str) -> list[CellKind]:
    """Each kind of loop by itself in each cell: figures that are pooled hide a kind that rises."""
    asked = {name for name, one in trial.sets.items() if one.use == "loops"}
    kept = {record.key: record for record in records if record.key.set in asked}
    pairs: dict[str, list[tuple[Record, Record]]] = {}
    for key, record in kept.items():
        other = kept.get(key._replace(arm=arm))
        if key.arm == UNPATCHED and other is not None:
            pairs.setdefault(key.cell, []).append((record, other))
    return [_cell(cell, kind, of_cell) for cell, of_cell in pairs.items() for kind in KINDS]


def evidence(judged: HeldOutResult, patch: str) -> dict[str, Any]:
    """The evidence in a patch file: the figures of its held-out trial."""
    arms = {one.arm.name: one for one in judged.summary.arms}
    base, own = arms[UNPATCHED], arms[patch]
    shams = [one for one in arms.values() if one.arm.control_of == patch]
    penalties = {one.arm.name: _rate(one) for one in arms.values() if one.arm.kind == "penalty"}
    found = own.against[JUDGED]
    return {
        "verdict": judged.summary.verdicts[patch].word,
        "answers-that-end-in-a-loop": {
            "unpatched": _rate(base),
            "patch": _rate(own),
            "shams": [_rate(one) for one in shams],
            **penalties,
        },
        "difference": f"{points(found.difference)} points; {found.rescued} rescued, {found.newly} new, "
        f"McNemar p {found.p:.3g}, sign-flip over {found.clusters} {found.unit} p {found.clustered_p:.3g}",
        "tasks": _tasks(own),
        **_healthy(own),
    }


def _shams(patch: Patch, model: ModelFolder, settings: SearchSettings) -> tuple[list[Arm], list[str]]:
    """As many shams as wanted, or as there is room for."""
    for count in range(settings.shams, 0, -1):
        try:
            shams = shams_of(patch, model, count, settings.seed)
        except UsageError as error:
            reason = str(error)
            continue
        return shams, [] if count == settings.shams else [f"{count} of {settings.shams} shams: {reason}"]
    return [], [f"no shams: {reason}"]


def _cell(cell: str, kind: str, pairs: Sequence[tuple[Record, Record]]) -> CellKind:
    both = [(kind in terminal_kinds(one), kind in terminal_kinds(two)) for one, two in pairs]
    before, after = (sum(column) for column in zip(*both, strict=True))
    return CellKind(cell, kind, len(both), before, after, both.count((True, False)), both.count((False, True)))


def _rate(one: ArmSummary) -> str:
    rates = one.rates[JUDGED]
    found = rates.looped
    kinds = ", ".join(f"{count} {kind}" for kind, count in rates.terminal.items() if count)
    share = f"{100 * found.value:.1f} %, Wilson 95 % {100 * found.low:.1f} to {100 * found.high:.1f}"
    return f"{round(found.value * rates.answers)} of {rates.answers} ({share})" + (f"; {kinds}" if kinds else "")


def _tasks(one: ArmSummary) -> dict[str, str]:
    """By the name of each set. A patch file is for others too, whom it's no concern where a file of mine lies."""
    found: dict[str, str] = {}
    for name, tasks in one.tasks.items():
        base = Path(name).name
        key = base if base not in found else f"{base} ({len(found) + 1})"
        found[key] = f"{tasks.right} of {tasks.tasks} right, {len(tasks.lost)} lost, {len(tasks.won)} won"
    return found


def _healthy(one: ArmSummary) -> dict[str, str]:
    if one.healthy is None:
        return {}
    said = f"KL {nats(one.healthy.kl, ' nats a token')}, from below; perplexity "
    return {"healthy-text": f"{said}{one.healthy.base_perplexity:.3f} to {one.healthy.perplexity:.3f}"}
