# SPDX-License-Identifier: Apache-2.0
"""The detectors on the real answers of further models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.benchmarks.detector_report import share
from tests.benchmarks.markdown import table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.benchmarks.detector_report import Judged
    from tests.corpora.further_models import ModelLabel
    from vllm_surgery.loops import Loop

_MEANINGS = {"loop": "loops found", "healthy": "false alarms", "unclear": "counted for nothing: fires"}


NAMES = {"qwen2.5-coder": "Qwen2.5-Coder-0.5B-Instruct", "gemma3": "Gemma-3-270M"}


def further_model(model: str, judged: Sequence[tuple[Judged, ModelLabel]]) -> str:
    """The table in Markdown, and the answers of which the detectors say something else than the reader.

    Args:
        model: one of `NAMES`.
        judged: its answers.
    """
    rows = [
        [verdict, _MEANINGS[verdict], *_shares([one for one in judged if one[1].verdict == verdict])]
        for verdict in _MEANINGS
    ]
    missed = [one.sample.id for one, label in judged if label.kinds and not agrees(label, one.verdict.loops)]
    alarms = [one.sample.id for one, label in judged if label.verdict == "healthy" and one.verdict.loops]
    return "\n".join(
        [
            f"### Real answers of {NAMES[model]}",
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
