# SPDX-License-Identifier: Apache-2.0
"""A comparison of the harness's results in words: Markdown, which a terminal shows as well."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import TYPE_CHECKING, Any

from vllm_surgery.atomic_files import atomic_write
from vllm_surgery.errors import SurgeryError, one_line

if TYPE_CHECKING:
    from pathlib import Path

    from vllm_surgery.evaluation.harness.comparing import Change, Comparison, LoopRate
    from vllm_surgery.intervals import Estimate

NAME = "lm-eval"
"""Of the files in a trial's folder, beside the trial's own report."""


def to_data(comparison: Comparison) -> dict[str, Any]:
    """The comparison as plain data; what can't be said is null."""
    plain: dict[str, Any] = _without_nan(dataclasses.asdict(comparison))
    return plain


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def in_words(comparison: Comparison) -> str:
    """Tables of what changed and of loops, and notes."""
    base = comparison.arms[0]
    lines = [
        f"| arm | task | metric | documents | {one_line(base)} | arm | difference | lost | won | p |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *map(_row, comparison.changes),
    ]
    if comparison.loops:
        lines += ["", "| arm | task | texts | end in a loop |", "|---|---|---|---|", *map(_loop_row, comparison.loops)]
    return "\n".join([*lines, *(f"\nnote: {one_line(note)}" for note in comparison.notes)])


def _row(change: Change) -> str:
    metric = change.metric if change.filter == "none" else f"{change.metric} ({change.filter})"
    cells = [change.arm, change.task, metric, change.documents, f"{change.before:.4g}", f"{change.after:.4g}"]
    cells += [_interval(change.difference), *(_or_dash(number) for number in (change.lost, change.won))]
    cells.append("-" if change.p is None else f"{change.p:.3g}")
    return f"| {' | '.join(one_line(str(cell)).replace('|', '/') for cell in cells)} |"


def _loop_row(rate: LoopRate) -> str:
    share = f"{100 * rate.rate.value:.1f} % ({100 * rate.rate.low:.1f} to {100 * rate.rate.high:.1f})"
    return f"| {one_line(rate.arm)} | {one_line(rate.task)} | {rate.texts} | {rate.looped}, {share} |"


def _interval(estimate: Estimate) -> str:
    if math.isnan(estimate.low):
        return f"{estimate.value:+.4f}"
    return f"{estimate.value:+.4f} ({estimate.low:+.4f} to {estimate.high:+.4f})"


def _or_dash(number: int | None) -> str:
    return "-" if number is None else str(number)


def write(comparison: Comparison, folder: Path) -> dict[str, Path]:
    """Writes the comparison into a folder, as Markdown and as JSON.

    Raises:
        SurgeryError: it can't be written.
    """
    files = {"markdown": folder / f"{NAME}.md", "data": folder / f"{NAME}.json"}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(files["markdown"], f"# lm-evaluation-harness\n\n{in_words(comparison)}\n")
        atomic_write(files["data"], json.dumps(to_data(comparison), indent=1) + "\n")
    except OSError as error:
        raise SurgeryError(f"{folder}: can't be written: {error.strerror or error}") from None
    return files
