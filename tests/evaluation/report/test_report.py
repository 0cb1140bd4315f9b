# SPDX-License-Identifier: Apache-2.0
"""Figures, examples and pages, from answers that are known."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest

from vllm_surgery.evaluation.analysis.summary import JUDGED, summarize
from vllm_surgery.evaluation.arms import of_patch, unpatched
from vllm_surgery.evaluation.protocol import load_protocol
from vllm_surgery.evaluation.records import FoundLoop, Record
from vllm_surgery.evaluation.report.blocks import Section, Table, Words, markdown
from vllm_surgery.evaluation.report.examples import CHARACTERS_SHOWN, EXAMPLES_PER_SORT, examples
from vllm_surgery.evaluation.report.figures import onset_figure, rates_figure, series_of
from vllm_surgery.evaluation.report.tables import against_table, nats, points
from vllm_surgery.evaluation.report.write import html, sections_of, write_report
from vllm_surgery.evaluation.trial import Trial
from vllm_surgery.intervals import Estimate
from vllm_surgery.patch.format import Patch

if TYPE_CHECKING:
    from pathlib import Path

PATCH = Patch.from_data({"version": 1, "name": "cure", "edits": [{"op": "zero", "neurons": {"0": [1]}}]})
TRIAL = Trial.of(load_protocol("small").changed(cells=["greedy"], sets=["paper"]), [unpatched(), of_patch(PATCH)], {})
TEXT = "Stars: Lyra\n" + "Orion\n" * 40
LOOP = FoundLoop("verbatim", 4, 2, 20.0, 84, "terminal", 12, 18)


def record(arm: str, number: int, *, looped: bool) -> Record:
    """The answer of an arm to the probe of that number."""
    job = [job for one in TRIAL.arms if one.name == arm for job in TRIAL.jobs(one)][number]
    loops = [LOOP] if looped else []
    return Record(job.key, "id", job.prompt, job.sampling, TEXT if looped else "Lyra", list(range(84)), "stop", loops)


RECORDS = [record("unpatched", number, looped=number < 6) for number in range(8)]
RECORDS += [record("cure", number, looped=number > 5) for number in range(8)]
SUMMARY = summarize(TRIAL, RECORDS, {})


def test_each_sort_of_pair_is_shown_and_no_more_than_that() -> None:
    sorts = [example.sort for example in examples(TRIAL, RECORDS)]
    assert sorts == ["rescued"] * EXAMPLES_PER_SORT + ["newly looping"] * 2


def test_what_repeats_is_marked_from_its_second_time_on() -> None:
    side = next(examples(TRIAL, RECORDS)).sides[0]
    assert side.before == "Stars: Lyra\nOrion\n"
    assert side.repeats.startswith("Orion\nOrion")
    assert len(side.before + side.repeats) <= CHARACTERS_SHOWN
    assert side.said == "verbatim loop from token 4, 20 copies of 2, terminal; ended by itself"


def test_the_rates_figure_has_a_mark_for_each_arm_and_probe() -> None:
    root = ElementTree.fromstring(rates_figure(SUMMARY))
    titles = [title.text or "" for title in root.iter("{http://www.w3.org/2000/svg}title")]
    assert "unpatched, paper/constellations: 100 % (21 to 100)" in titles
    assert sum("paper/" in title for title in titles) == 16


def test_the_onset_figure_falls_to_what_never_looped() -> None:
    root = ElementTree.fromstring(onset_figure(SUMMARY, RECORDS))
    paths = [path.get("d") or "" for path in root.iter("{http://www.w3.org/2000/svg}path")]
    lows = [max(float(y) for y in re.findall(r",(-?[\d.]+)", path)) for path in paths]
    assert lows[0] - 34 == pytest.approx(260 * 6 / 8, abs=0.2)
    assert lows[1] - 34 == pytest.approx(260 * 2 / 8, abs=0.2)


def test_shams_have_one_colour() -> None:
    assert [one.name for one in series_of(SUMMARY)] == ["unpatched", "cure"]


def test_a_page_in_markdown_and_html() -> None:
    sections = [Section("One", [Words("a **b** & c", ["`d|e` * 2"]), Table(["x"], [["<i>|"]])])]
    assert markdown("T", sections) == "# T\n\n## One\n\na **b** & c\n\n- `d|e` * 2\n\n| x |\n| --- |\n| <i>\\| |\n"
    page = html("T", sections)
    assert "<strong>b</strong> &amp; c" in page
    assert "<li><code>d|e</code> * 2</li>" in page
    assert "&lt;i&gt;|" in page


def test_a_trial_that_says_nothing_of_itself_has_a_report(tmp_path: Path) -> None:
    files = write_report(SUMMARY, TRIAL, RECORDS, tmp_path)
    assert "**Model**: not known" in files["markdown"].read_text()


def test_both_judges_are_reported_and_where_they_disagree() -> None:
    text = TEXT.replace("Orion", "`Orion`") + "Lyra"
    unseen = Record(RECORDS[7].key, "id", "", {}, text, list(range(84)), "stop", [])
    summary = summarize(TRIAL, [*RECORDS[:7], unseen, *RECORDS[8:]], {})
    page = markdown("T", sections_of(summary, TRIAL, RECORDS))
    assert "## Two judges" in page
    row = next(line for line in page.split("## Two judges")[1].splitlines() if line.startswith("| unpatched |"))
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[5:9] == ["6", "0", "1", ""]
    assert f"They disagree, **unpatched**:\n\n- greedy/paper/{unseen.key.probe}, seed 0, tail judge only: `" in page


def test_answers_that_are_needed_are_shared_out_over_probes_and_not_over_subjects() -> None:
    protocol = load_protocol("small").changed(cells=["greedy"], sets=["wide-lists:held-out"])
    trial = Trial.of(protocol, [unpatched(), of_patch(PATCH)], {})
    changed = {"unpatched": range(9), "cure": range(9, 12)}
    records = [
        Record(
            job.key, "id", job.prompt, job.sampling, TEXT, list(range(84)), "stop", [LOOP] * (n in changed[arm.name])
        )
        for arm in trial.arms
        for n, job in enumerate(trial.jobs(arm))
    ]
    found = against_table(summarize(trial, records, {}), JUDGED)
    row = dict(zip(found.head, found.rows[0], strict=True))
    assert (row["pairs"], row["rescued"], row["newly"]) == ("80", "9", "3")
    assert row["needed"] == "207 (3 a probe)"  # 5 for each of 48 subjects.
    assert "p over subjects" in row


def test_a_figure_without_an_interval_is_told_without_one() -> None:
    whole, bare = Estimate(-0.125, -0.25, 0.0), Estimate(0.0, math.nan, math.nan)
    assert (points(whole), points(whole, digits=0)) == ("-12.5 (-25.0 to +0.0)", "-12 (-25 to +0)")
    assert (points(bare), points(bare, digits=0), nats(bare, " nats")) == ("+0.0", "+0", "0.0000 nats")
    assert nats(Estimate(0.5, 0.25, 1.0), " nats") == "0.5000 nats (0.2500 to 1.0000)"


def test_what_cant_be_said_is_null() -> None:
    data = SUMMARY.to_data()
    assert data["arms"][1]["against"]["judged"]["ratio"]["value"] == pytest.approx(1 / 3)
    none = summarize(TRIAL, [record(arm.name, n, looped=False) for arm in TRIAL.arms for n in range(8)], {})
    assert none.to_data()["arms"][1]["against"]["judged"]["ratio"] == {"value": None, "low": None, "high": None}
