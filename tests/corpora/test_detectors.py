# SPDX-License-Identifier: Apache-2.0
"""What is published about the detectors holds: `docs/detectors.md` has the figures, this has the bounds they must keep.

All healthy passages and all labelled answers are read; of the planted loops every fifth, for time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.benchmarks.detector_report import HARDEST, LONG_ENOUGH, Judged, Scored, findings, fired
from tests.benchmarks.detectors import score
from tests.corpora.healthy import GENERATED
from tests.corpora.labels import Label
from tests.corpora.planted import Planted
from tests.corpora.samples import load_corpora, load_tokenizer
from tests.corpora.scoring import found_planted
from vllm_surgery.loops import KINDS, TokenTable

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow  # Judges all corpora.

KNOWN_ALARMS = {
    "verbatim": set(),
    "decay": {"sql/0177", "silence/0041"},
    "collapse": {"songs/0007", "files-in-turn/0071"},
    "doom": set(),
}
"""Generated passages that fire, by kind: rows that say the same, encoded silence, a chorus of one syllable, a log of checks."""

FROM_THE_ENVIRONMENT_AT_MOST = 2
"""Passages from the environment that may fire, since other versions of packages bring other files."""


@pytest.fixture(scope="module")
def scored(demo_model: Path) -> Scored:
    tokenizer = load_tokenizer(demo_model)
    corpora = load_corpora(tokenizer, planted_step=5)
    return score(corpora, TokenTable.from_tokenizer(tokenizer), peers=False)


@pytest.mark.parametrize("kind", KINDS)
def test_no_healthy_passage_is_a_loop_but_those_that_are_known(scored: Scored, kind: str) -> None:
    alarms = [name for name in fired(scored)[kind] if not name.startswith(HARDEST)]

    assert {name for name in alarms if _is_generated(name)} <= KNOWN_ALARMS[kind]
    assert len([name for name in alarms if not _is_generated(name)]) <= FROM_THE_ENVIRONMENT_AT_MOST


def _is_generated(name: str) -> bool:
    return name.partition("/")[0] in GENERATED


def test_of_lists_with_few_right_answers_at_most_a_tenth_fires(scored: Scored) -> None:
    hardest = [one for one in scored.healthy if one.sample.group == HARDEST]

    assert sum(bool(one.verdict.loops) for one in hardest) <= len(hardest) / 10


def test_planted_verbatim_loops_are_found_with_their_period_and_onset(scored: Scored) -> None:
    periodic = [one for one in _planted(scored, "verbatim") if _truth(one).period is not None]
    long = [one for one in periodic if _covered(one) >= LONG_ENOUGH]
    found = [found_planted(_truth(one), one.verdict.loops) for one in long]
    exact = [loops for one, loops in zip(long, found, strict=True) if loops and loops[0].onset == _truth(one).onset]

    assert len(long) > 300
    assert sum(map(bool, found)) / len(long) > 0.99
    assert len(exact) / len(long) > 0.99


@pytest.mark.parametrize(("tokens", "least"), [(128, 0.95), (256, 0.99)])
def test_verbatim_loops_in_which_the_answer_was_cut_are_found_from_128_tokens_on(
    scored: Scored, tokens: int, least: float
) -> None:
    cut = [one for one in _planted(scored, "verbatim") if not _truth(one).escaped and _covered(one) >= tokens]
    found = [one for one in cut if found_planted(_truth(one), one.verdict.loops)]

    assert len(cut) > 300
    assert len(found) / len(cut) >= least


@pytest.mark.parametrize(("kind", "least"), [("decay", 0.95), ("collapse", 0.9), ("doom", 0.85)])
def test_planted_loops_of_other_kinds_are_mostly_found(scored: Scored, kind: str, least: float) -> None:
    loops = _planted(scored, kind)

    assert sum(bool(found_planted(_truth(one), one.verdict.loops)) for one in loops) / len(loops) >= least


def _planted(scored: Scored, kind: str) -> list[Judged]:
    return [one for one in scored.planted if _truth(one).kind == kind]


def _covered(one: Judged) -> int:
    return _truth(one).end - _truth(one).onset


def _truth(one: Judged) -> Planted:
    assert isinstance(one.sample.truth, Planted)
    return one.sample.truth


@pytest.mark.parametrize(("kind", "least"), [("verbatim", 0.95), ("decay", 0.7)])
def test_most_of_the_labelled_loops_are_found(scored: Scored, kind: str, least: float) -> None:
    """Of decays fewer: many a list says one short thing from its first entry on and ends by itself, as labels do."""
    seen = [loop for _, _, loop in findings(scored, kind)]

    assert sum(loop is not None for loop in seen) / len(seen) >= least


def test_no_answer_that_a_reader_calls_healthy_fires(scored: Scored) -> None:
    healthy = [
        one for one in scored.real if isinstance(one.sample.truth, Label) and one.sample.truth.verdict == "healthy"
    ]

    assert [one.sample.id for one in healthy if one.verdict.loops] == []
