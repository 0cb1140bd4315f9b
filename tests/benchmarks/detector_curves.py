# SPDX-License-Identifier: Apache-2.0
"""What other thresholds would give: false alarms against recall, one number changed at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tests.benchmarks.detector_report import HARDEST
from tests.benchmarks.markdown import table as markdown_table
from tests.corpora.labels import Label
from tests.corpora.planted import Planted
from tests.corpora.scoring import found_planted, found_real
from vllm_surgery.loops import Thresholds, detect

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.corpora.samples import Corpora, Sample

VALUES: dict[str, tuple[str, tuple[int, ...]]] = {
    "poor_tokens": ("verbatim", (256, 384, 512)),
    "tokens": ("verbatim", (64, 96, 192)),
    "cut_tokens": ("verbatim", (64, 96, 128)),
    "entries": ("decay", (6, 8, 16)),
    "entry_copies": ("decay", (3, 4, 6)),
    "single_labels": ("decay", (32, 96)),
    "cycle_entries": ("decay", (24, 40)),
    "window_bits": ("collapse", (330, 360, 390, 420)),
    "window_news": ("collapse", (4, 8, 16)),
    "turns": ("doom", (6, 10, 16)),
    "stale_turns": ("doom", (60, 75, 90)),
}
"""The thresholds that matter most, by the kind of loop that they are about."""


def curves(corpora: Corpora, table: Any) -> str:
    """One table a kind, of the half that thresholds were chosen by, without the class that can't be told apart."""
    note = (
        "One number changed at a time; *: as shipped. On the half that thresholds were chosen by. Verbatim loops are looked "
        "for in token ids alone here: without their text, matrices and encoded silence can't be told from loops."
    )
    lines = ["### Other thresholds", "", note, ""]
    for kind in ("verbatim", "decay", "collapse", "doom"):
        head = ["threshold", "value", "false alarms", "planted found", "labelled found"]
        lines += [f"{kind}:", "", *markdown_table(head, _rows(kind, corpora, table)), ""]
    return "\n".join(lines)


def _rows(kind: str, corpora: Corpora, table: Any) -> Iterable[list[str]]:
    for name, (about, values) in VALUES.items():
        if about == kind:
            shipped = getattr(Thresholds(), name)
            for value in sorted({*values, shipped}):
                mark = "*" if value == shipped else ""
                yield [name, f"{value}{mark}", *_cells(kind, corpora, table, replace(Thresholds(), **{name: value}))]


def _cells(kind: str, corpora: Corpora, table: Any, thresholds: Thresholds) -> list[str]:
    healthy = [one for one in corpora.healthy if one.group != HARDEST and not one.held_out]
    planted = [one for one in corpora.planted if not one.held_out]
    use = None if kind == "verbatim" else table
    alarms = sum(_finds(kind, one, use, thresholds) for one in healthy)
    return [
        f"{alarms}/{len(healthy)}",
        _planted(kind, planted, use, thresholds),
        _labelled(kind, corpora.real, use, thresholds),
    ]


def _finds(kind: str, one: Sample, table: Any, thresholds: Thresholds) -> bool:
    return any(loop.kind == kind for loop in detect(one.tokens, table, thresholds, one.ending))


def _planted(kind: str, samples: Sequence[Sample], table: Any, thresholds: Thresholds) -> str:
    of_kind = [(one, one.truth) for one in samples if isinstance(one.truth, Planted) and one.truth.kind == kind]
    found = sum(bool(found_planted(truth, detect(one.tokens, table, thresholds, one.ending))) for one, truth in of_kind)
    return f"{found}/{len(of_kind)}"


def _labelled(kind: str, samples: Sequence[Sample], table: Any, thresholds: Thresholds) -> str:
    wanted = [
        (one, finding)
        for one in samples
        if isinstance(one.truth, Label) and not one.truth.late
        for finding in one.truth.findings
        if finding.kind == kind and not finding.optional
    ]
    found = sum(
        found_real(finding, detect(one.tokens, table, thresholds, one.ending)) is not None for one, finding in wanted
    )
    return f"{found}/{len(wanted)}" if wanted else ""
