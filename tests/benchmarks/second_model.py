# SPDX-License-Identifier: Apache-2.0
"""The detectors on the real answers of a second model, which were labelled when no threshold was moved any more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.benchmarks.detector_report import share
from tests.benchmarks.markdown import table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.benchmarks.detector_report import Judged
    from tests.corpora.second_model import ModelLabel
    from vllm_surgery.loops import Loop

_MEANINGS = {"loop": "loops found", "healthy": "false alarms", "unclear": "counted for nothing: fires"}


def second_model(judged: Sequence[tuple[Judged, ModelLabel]]) -> str:
    """The table in Markdown, and the answers of which the detectors say something else than the reader."""
    rows = [
        [verdict, _MEANINGS[verdict], *_shares([one for one in judged if one[1].verdict == verdict])]
        for verdict in _MEANINGS
    ]
    missed = [one.sample.id for one, label in judged if label.kinds and not agrees(label, one.verdict.loops)]
    alarms = [one.sample.id for one, label in judged if label.verdict == "healthy" and one.verdict.loops]
    return "\n".join(
        [
            "### Real answers of Qwen2.5-Coder-0.5B-Instruct",
            "",
            *table(["a reader says", "which makes", "now", "before"], rows),
            "",
            f"Not found: {', '.join(missed) or 'none'}.",
            f"Healthy answers that fire: {', '.join(alarms) or 'none'}.",
            "",
        ]
    )


def agrees(label: ModelLabel, loops: Iterable[Loop]) -> bool:
    """True if a loop was found of a kind that the reader names; of any kind where he names none."""
    kinds = {loop.kind for loop in loops}
    return bool(kinds & set(label.kinds)) if label.kinds else bool(kinds)


def _shares(judged: Sequence[tuple[Judged, ModelLabel]]) -> list[str]:
    now = sum(agrees(label, one.verdict.loops) for one, label in judged)
    before = sum(agrees(label, one.verdict.before) for one, label in judged)
    return [share(now, len(judged)), share(before, len(judged))]
