# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import pytest

from tests.benchmarks.detector_curves import VALUES
from tests.benchmarks.detector_report import HARDEST, Judged, Scored, fired, render, share
from tests.benchmarks.detectors import BEGIN, END, read_reports, with_older, write_samples
from tests.benchmarks.further_models import further_model
from tests.benchmarks.markdown import put_between
from tests.corpora.further_models import ModelLabel
from tests.corpora.labels import Finding, Label
from tests.corpora.planted import Planted
from tests.corpora.rules import PEERS, compression_ratio, judge
from tests.corpora.samples import Corpora, Sample
from tests.corpora.scoring import agrees, found_planted, found_real
from vllm_surgery.loops import Loop, Thresholds

if TYPE_CHECKING:
    from pathlib import Path

LONG = tuple(range(600))
CIRCLE = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12) * 50


def _loop(kind: Any = "verbatim", onset: int = 10, end: int = 200, period: int = 4, outcome: Any = "terminal") -> Loop:
    return Loop(kind, onset, period, (end - onset) / period, end, outcome)


def _planted(kind: Any = "verbatim", onset: int = 10, end: int = 200, period: int | None = 4) -> Planted:
    return Planted("x", kind, "text", LONG[:200], onset, end, period)


def test_a_planted_loop_is_found_by_a_loop_of_its_kind_place_and_period() -> None:
    assert found_planted(_planted(), [_loop()]) == [_loop()]


@pytest.mark.parametrize(
    "other", [_loop(kind="decay"), _loop(period=8), _loop(onset=0, end=10), _loop(onset=200, end=240)]
)
def test_a_planted_loop_is_not_found_by_another(other: Loop) -> None:
    assert found_planted(_planted(), [other]) == []


def test_a_decay_has_no_period_to_agree_on() -> None:
    assert len(found_planted(_planted("decay", period=None), [_loop("decay", period=9)])) == 1


@pytest.mark.parametrize(("onset", "error"), [(9, -11), (20, 0), (25, 0), (30, 0), (33, 3)])
def test_the_error_of_an_onset_is_its_way_to_the_label(onset: int, error: int) -> None:
    assert Finding("decay", 20, 30, "terminal", False).error(onset) == error


def test_of_several_loops_the_nearest_answers_a_label() -> None:
    near, far = _loop(onset=22), _loop(onset=90)

    assert found_real(Finding("verbatim", 20, 30, "terminal", False), [far, near]) == near
    assert found_real(Finding("decay", 20, 30, "terminal", False), [far, near]) is None


@pytest.mark.parametrize(("label", "agreed"), [("terminal", True), ("escaped", False), ("either", True)])
def test_an_outcome_agrees_with_the_label_or_the_label_leaves_it_open(label: str, agreed: bool) -> None:
    assert agrees(label, _loop(outcome="terminal")) is agreed


def test_all_rules_fire_on_a_plain_loop_and_none_on_text_that_never_repeats() -> None:
    loop, plain = (
        judge(Sample("x", "y", tokens, text), None, Thresholds())
        for tokens, text in ((CIRCLE, "abc " * 99), (LONG, "abc"))
    )

    assert loop.kinds() == {"verbatim"}
    assert loop.peers == set(PEERS)
    assert not plain.loops
    assert not plain.peers


def test_twelve_copies_satisfy_fewer_settings_than_four() -> None:
    verdict = judge(Sample("x", "y", (*LONG[:50], *CIRCLE[:60]), "abc"), None, Thresholds())

    assert verdict.peers == {"vLLM (20, 4)", "vLLM (64, 4)"}


def test_a_compression_ratio_is_bytes_over_packed_bytes() -> None:
    assert compression_ratio("") == 0
    assert compression_ratio("a" * 1000) > 50
    assert compression_ratio("q8") < 1


def test_a_share_has_its_count_rate_and_interval() -> None:
    assert share(5, 10) == "5/10: 50.0 % (23.7 to 76.3)"
    assert share(0, 0) == "0/0"


def _scored() -> Scored:
    healthy = (Sample("logs/0000", "logs", LONG, "a"), Sample(f"{HARDEST}/0000", HARDEST, CIRCLE, "b"))
    planted = (
        Sample("verbatim/0000", "text", CIRCLE, "c", Planted("verbatim/0000", "verbatim", "text", CIRCLE, 0, 600, 12)),
    )
    label = Label("list-000-greedy", "loop", (Finding("verbatim", 0, 0, "terminal", False),))
    corpora = Corpora(healthy, planted, (Sample(label.id, "loop", CIRCLE, "d", label),))
    samples = (*corpora.healthy, *corpora.planted, *corpora.real)
    return Scored.of(corpora, {one.id: judge(one, None, Thresholds(), peers=False) for one in samples})


def test_healthy_passages_that_fire_are_listed_by_id() -> None:
    assert fired(_scored()) == {"verbatim": [f"{HARDEST}/0000"], "decay": [], "collapse": [], "doom": []}


def test_the_report_counts_alarms_recall_and_labels() -> None:
    report = render(_scored())

    assert f"| **all but {HARDEST}** | 0/1: 0.0 %" in report
    assert "| 8 to 31 | 1/1: 100.0 %" in report
    assert "| **verbatim** | 1/1: 100.0 %" in report
    assert "Not found: none." in report


def test_figures_replace_what_stands_between_the_marks_and_nothing_else() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"

    assert put_between(page, BEGIN, END, "new") == f"before\n{BEGIN}\n\nnew\n{END}\nafter\n"


def test_older_detectors_stand_beside_the_new_ones(tmp_path: Path) -> None:
    file = tmp_path / "before.jsonl"
    loop = {"kind": "verbatim", "onset": 0, "period": 12, "copies": 50.0, "end": 600, "outcome": "terminal"}
    reports = [{"loops": [], "line": 1}, {"loops": [loop], "line": 2}, {"loops": [loop]}, {"loops": []}]
    file.write_text("".join(json.dumps(one) + "\n" for one in reports))
    scored = with_older(_scored(), read_reports(file))

    assert [bool(one.verdict.before) for one in scored.healthy] == [False, True]
    assert "| 8 to 31 | 1/1: 100.0 % (20.7 to 100.0) | 100.0 % |" in render(scored)
    assert "| **verbatim** | 1/1: 100.0 % (20.7 to 100.0) | 0.0 % |" in render(scored)


def test_reports_of_other_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="1 reports of 4 answers"):
        with_older(_scored(), [()])


def test_answers_are_written_as_detect_reads_them(tmp_path: Path) -> None:
    write_samples([Sample("a", "b", (1, 2), "c", ending="cut")], tmp_path / "samples.jsonl")
    assert json.loads((tmp_path / "samples.jsonl").read_text()) == {
        "id": "a",
        "token_ids": [1, 2],
        "finish_reason": "length",
    }


def test_a_further_models_answers_count_by_what_a_reader_says() -> None:
    def judged(name: str, tokens: tuple[int, ...], label: ModelLabel) -> tuple[Judged, ModelLabel]:
        sample = Sample(name, label.verdict, tokens, "")
        return Judged(sample, judge(sample, None, Thresholds(), peers=False)), label

    told = further_model(
        "gemma3",
        [
            judged("a", CIRCLE, ModelLabel("loop", ("verbatim", "decay"))),
            judged("b", LONG, ModelLabel("loop", ("decay",))),
            judged("c", LONG, ModelLabel("healthy")),
        ],
    )
    assert "### Real answers of Gemma-3-270M" in told
    assert "| loop | loops found | 1/2: 50.0 %" in told
    assert "| healthy | false alarms | 0/1: 0.0 %" in told
    assert "Not found: b." in told


def test_every_curve_is_of_a_threshold_that_there_is() -> None:
    assert set(VALUES) <= {field.name for field in fields(Thresholds)}
