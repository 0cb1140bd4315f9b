# SPDX-License-Identifier: Apache-2.0
"""What other thresholds would give: false alarms against recall, one number changed at a time."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from tests.benchmarks.detector_report import HARDEST, LONG_ENOUGH
from tests.benchmarks.markdown import table as markdown_table
from tests.corpora.labels import Label
from tests.corpora.planted import Planted
from tests.corpora.scoring import found_planted, found_real
from vllm_surgery.loops import Thresholds, detect

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.corpora.samples import Corpora, Sample

VALUES: dict[str, tuple[str, tuple[int, ...]]] = {
    "poor_tokens": ("verbatim", (128, 256, 320, 384, 448, 512, 768)),
    "poor_variety": ("verbatim", (4, 6, 8, 12)),
    "tokens": ("verbatim", (32, 64, 96, 128, 192)),
    "copies": ("verbatim", (3, 4, 5, 6)),
    "long_period": ("verbatim", (48, 64, 96, 128, 256)),
    "entries": ("decay", (6, 8, 10, 12, 16)),
    "entry_copies": ("decay", (3, 4, 5, 6)),
    "entry_tokens": ("decay", (32, 64, 128)),
    "bare_entries": ("decay", (8, 16, 24, 32)),
    "bare_copies": ("decay", (4, 6, 8, 12)),
    "counted_entries": ("decay", (16, 24, 32, 40, 48)),
    "counted_copies": ("decay", (4, 8, 16)),
    "pieces": ("decay", (8, 12, 16, 24)),
    "turns": ("doom", (6, 8, 10, 12, 16)),
    "turn_novelty": ("doom", (10, 15, 20, 25, 30, 40, 50)),
}
"""The thresholds that matter most, by the kind of loop that they are about."""


def curves(corpora: Corpora, table: Any) -> str:
    """One table a kind. False alarms are counted on all healthy classes but the one that can't be told apart."""
    lines = ["### Other thresholds", "", "One number changed at a time; *: as shipped.", ""]
    for kind in ("verbatim", "decay", "doom"):
        head = ["threshold", "value", "false alarms, chosen by", "held out", "planted found", "labelled found"]
        lines += [f"{kind}:", "", *markdown_table(head, _rows(kind, corpora, table)), ""]
    return "\n".join(lines)


def _rows(kind: str, corpora: Corpora, table: Any) -> Iterable[list[str]]:
    known = {field.name for field in fields(Thresholds)}
    for name, (about, values) in VALUES.items():
        if about == kind and name in known:
            shipped = getattr(Thresholds(), name)
            for value in sorted({*values, shipped}):
                mark = "*" if value == shipped else ""
                yield [name, f"{value}{mark}", *_cells(kind, corpora, table, replace(Thresholds(), **{name: value}))]


def _cells(kind: str, corpora: Corpora, table: Any, thresholds: Thresholds) -> list[str]:
    ordinary = [one for one in corpora.healthy if one.group != HARDEST]
    halves = [[one for one in ordinary if one.held_out is held_out] for held_out in (False, True)]
    use = None if kind == "verbatim" else table
    alarms = [f"{sum(_finds(kind, one, use, thresholds) for one in half)}/{len(half)}" for half in halves]
    return [*alarms, _planted(kind, corpora.planted, use, thresholds), _labelled(kind, corpora.real, use, thresholds)]


def _finds(kind: str, one: Sample, table: Any, thresholds: Thresholds) -> bool:
    return any(loop.kind == kind for loop in detect(one.tokens, table, thresholds))


def _planted(kind: str, samples: Sequence[Sample], table: Any, thresholds: Thresholds) -> str:
    of_kind = [
        (one, one.truth)
        for one in samples
        if isinstance(one.truth, Planted)
        and one.truth.kind == kind
        and (kind != "verbatim" or one.truth.end - one.truth.onset >= LONG_ENOUGH)
    ]
    found = sum(bool(found_planted(truth, detect(one.tokens, table, thresholds))) for one, truth in of_kind)
    return f"{found}/{len(of_kind)}"


def _labelled(kind: str, samples: Sequence[Sample], table: Any, thresholds: Thresholds) -> str:
    wanted = [
        (one, finding)
        for one in samples
        if isinstance(one.truth, Label) and not one.truth.late
        for finding in one.truth.findings
        if finding.kind == kind and not finding.optional
    ]
    found = sum(found_real(finding, detect(one.tokens, table, thresholds)) is not None for one, finding in wanted)
    return f"{found}/{len(wanted)}" if wanted else ""
