# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from tests.benchmarks.answers import Answer
from tests.benchmarks.divergence import Drift
from tests.benchmarks.list_report import outcomes, render
from tests.benchmarks.short_lists import ShortList
from tests.benchmarks.trial import Arm, Trial

LOOPING = Answer("List all.", "a, " * 40, [5, 6] * 40, complete=False)
SOUND = Answer("List all.", "a, b", [5, 6, 7], complete=True)
RED = Answer("Name a color.", "Red.", [8], complete=True)
TWO = Answer("Name a color.", "Red, blue.", [8, 9], complete=True)
COLOR = ShortList("Name a color.", (("red",), ("blue",)), choose=1)


def trial() -> Trial:
    drifts = [Drift("prose", 10, 0.5, 9, 20.0, 21.0), Drift("code", 30, 0.5, 30, 30.0, 31.0)]
    arms = [
        Arm("unpatched", "unpatched", lists=[LOOPING, LOOPING, SOUND], short=[RED]),
        Arm("unpatched again", "again", lists=[LOOPING, LOOPING, SOUND], short=[RED]),
        Arm("patch", "patch", {}, lists=[SOUND, LOOPING, SOUND], short=[TWO], drifts=drifts),
        Arm("sham-1", "sham", {}, [(1, 2)], 0.9, [LOOPING, LOOPING, LOOPING], [RED], drifts),
    ]
    return Trial("p@12345678", 256, 1, "vLLM 0, float32", arms)


def row(report: str, heading: str, arm: str) -> list[str]:
    section = report.split(f"## {heading}")[1]
    (line,) = [line for line in section.split("\n## ")[0].splitlines() if line.startswith(f"| {arm} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_loops_a_row_an_arm():
    report = render(trial(), [COLOR])
    assert row(report, "Loops", "unpatched")[3:6] == ["2", "0", "2"]
    assert row(report, "Loops", "patch")[3:6] == ["1", "0", "1"]
    assert row(report, "Loops", "sham-1")[1:6] == ["1/2", "0.90", "3", "0", "3"]


def test_changes_are_paired_by_prompt():
    report = render(trial(), [COLOR])
    assert row(report, "Against", "patch")[1:4] == ["1", "0", "1"]
    assert row(report, "Against", "sham-1")[1:4] == ["0", "1", "2"]


def test_short_lists_that_were_lost():
    report = render(trial(), [COLOR])
    assert row(report, "Short", "patch")[1:] == ["0", "1", "0", "0"]
    assert "Red, blue." in report


def test_divergence_is_a_mean_over_tokens():
    assert row(render(trial(), [COLOR]), "Healthy", "patch")[1].startswith("0.02500 (")


def test_a_trial_survives_its_file():
    assert render(Trial.from_json(trial().to_json()), [COLOR]) == render(trial(), [COLOR])


def test_outcomes():
    assert outcomes([LOOPING, SOUND]) == ["verbatim", "none"]
