# SPDX-License-Identifier: Apache-2.0
"""The second judge: what it calls a loop, and what is said where it and the detectors disagree."""

from __future__ import annotations

import pytest

from vllm_surgery.evaluation.analysis.tail_judge import Agreement, Disagreement, ends_in_repeats
from vllm_surgery.evaluation.records import FoundLoop, Key, Record

COUNTRIES = [
    "Chile",
    "Ghana",
    "Nepal",
    "Malta",
    "Kenya",
    "Japan",
    "Cuba",
    "Fiji",
    "Togo",
    "Peru",
    "Mali",
    "Oman",
    "Iran",
    "Chad",
    "Laos",
]
VERBATIM = "The answer is no. " * 40
DECAYED = "\n".join(f"{n}. {name}" for n, name in enumerate([*COUNTRIES, *["Chad", "Laos"] * 10], start=1))
LISTED = "\n".join(f"{n}. {name}" for n, name in enumerate(COUNTRIES, start=1))


def record(text: str, *kinds: str, seed: int = 0) -> Record:
    """An answer that ends in loops of these kinds, as the detectors say."""
    loops = [FoundLoop(kind, 1, 2, 9.0, 20, "terminal", 0, 0) for kind in kinds]
    return Record(
        Key("cure", "greedy", "paper", "birds", seed), None, "List them.", {}, text, [1] * 20, "length", loops
    )


@pytest.mark.parametrize("text", [VERBATIM, "x" * 300, DECAYED, DECAYED + "\n36. Bots", "No.\n" + "yes, " * 30])
def test_these_are_repeats(text: str) -> None:
    assert ends_in_repeats(record(text))


@pytest.mark.parametrize(
    "text",
    ["", "ha " * 20, LISTED, VERBATIM + LISTED, "\n".join(f"{n}. yes" for n in range(12)), "No.\n" + "yes, no, " * 3],
    ids=["empty", "short", "a list", "left", "eleven and a last", "few"],
)
def test_these_are_none(text: str) -> None:
    assert not ends_in_repeats(record(text))


def test_answers_about_which_judges_disagree_are_named() -> None:
    found = Agreement.of(
        [
            record(VERBATIM, "verbatim"),
            record(LISTED),
            record(VERBATIM, seed=2),
            record("Soft\nrain.", "doom", "decay", seed=3),
        ]
    )
    assert (found.answers, found.looped.value, found.both) == (4, 0.5, 1)
    missed, unseen = found.disagreements
    assert missed.kinds == []
    assert missed.end.endswith("The answer is no.")
    assert unseen == Disagreement("greedy", "paper", "birds", 3, ["decay", "doom"], "Soft rain.")
