# SPDX-License-Identifier: Apache-2.0
"""`vllm-surgery evaluate --lm-eval`: folders of lm-evaluation-harness as arms, written here so that they can be wrong,
and as it wrote them itself."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.examples import refusal
from vllm_surgery.cli import main
from vllm_surgery.errors import UsageError
from vllm_surgery.evaluation.analysis.statistics import mcnemar
from vllm_surgery.evaluation.arms import unpatched
from vllm_surgery.evaluation.harness.comparing import compare_results
from vllm_surgery.evaluation.harness.reading import read_results
from vllm_surgery.evaluation.protocol import load_protocol
from vllm_surgery.evaluation.trial import Trial, TrialFolder

LOOP = "one two three four " * 60
RECORDED = Path(__file__).parent / "recorded"
PRINTED = (0.375, 0.375)
"""What the harness printed as the accuracy of its two runs."""
TIME = "2026-11-29T12-00-00.000000"


def line(doc: int, score: float, text: str = "Paris", **more: Any) -> dict[str, Any]:
    """A line as the harness writes it for a task that asks for text."""
    hashes = {"doc_hash": f"d{doc}", "prompt_hash": f"p{doc}", "target_hash": f"t{doc}"}
    asked = {"doc_id": doc, "doc": {"question": "?"}, "target": "Paris", "arguments": {}, **hashes}
    told = {"resps": [[text]], "filtered_resps": [text], "filter": "none", "metrics": ["exact_match"]}
    return {**asked, **told, "exact_match": score, **more}


def write(folder: Path, lines: list[Any], task: str = "facts", time: str = TIME) -> Path:
    below = folder / "some__model"
    below.mkdir(parents=True, exist_ok=True)
    content = "".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in lines)
    (below / f"samples_{task}_{time}.jsonl").write_text(content)
    return folder


def compared(tmp_path: Path, before: list[Any], after: list[Any]) -> Any:
    one, other = write(tmp_path / "one", before), write(tmp_path / "other", after)
    return compare_results([read_results("unpatched", one), read_results("mine", other)])


def refused(tmp_path: Path, before: list[Any], after: list[Any] | None = None) -> str:
    said = refusal(lambda: compared(tmp_path, before, before if after is None else after), UsageError)
    return said.replace(f"{tmp_path}/", "")


# What comes out


def test_answers_are_paired_by_document(tmp_path: Path) -> None:
    before = [line(doc, score) for doc, score in enumerate([1, 1, 1, 0, 0, 0, 1, 1])]
    after = [line(doc, score) for doc, score in enumerate([1, 0, 0, 1, 0, 0, 0, 1])]
    (change,) = compared(tmp_path, before, after[::-1]).changes
    assert (change.arm, change.task, change.metric, change.documents) == ("mine", "facts", "exact_match", 8)
    assert (change.before, change.after, change.lost, change.won) == (0.625, 0.375, 3, 1)
    assert change.p == mcnemar(3, 1)
    assert (change.difference.low < -0.25 < change.difference.high, change.difference.value) == (True, -0.25)


def test_scores_that_arent_right_or_wrong_have_a_difference_alone(tmp_path: Path) -> None:
    before = [line(doc, 0.5) for doc in range(4)]
    (change,) = compared(tmp_path, before, [line(doc, 0.75) for doc in range(4)]).changes
    assert (change.lost, change.won, change.p) == (None, None, None)
    assert change.difference.value == 0.25


@pytest.mark.parametrize(("before", "after"), [(0.5, 0.75), (0.5, 0.5)])
def test_scores_that_all_change_by_as_much_give_no_interval(tmp_path: Path, before: float, after: float) -> None:
    (change,) = compared(
        tmp_path, [line(doc, before) for doc in range(4)], [line(doc, after) for doc in range(4)]
    ).changes
    assert math.isnan(change.difference.low)
    assert math.isnan(change.difference.high)


def test_answers_that_all_stay_as_right_as_they_were_prove_no_equality(tmp_path: Path) -> None:
    lines = [line(doc, doc % 2) for doc in range(50)]
    (change,) = compared(tmp_path, lines, lines).changes
    assert (change.lost, change.won, change.difference.value) == (0, 0, 0.0)
    assert (change.difference.low, change.difference.high) == pytest.approx((-0.0377, 0.0377), abs=1e-4)


def test_every_filter_metric_and_task_is_its_own_line(tmp_path: Path) -> None:
    lines = [line(0, 1), line(0, 0, filter="first-word"), line(1, 1, metrics=["exact_match", "f1"], f1=0.5)]
    one, other = write(tmp_path / "one", lines), write(tmp_path / "other", lines)
    for folder in (one, other):
        write(folder, [line(0, 1, metrics=["acc"], acc=True, resps=[[[-1.5, "True"]]])], "choices")
    found = compare_results([read_results("a", one), read_results("b", other)])
    assert [(item.task, item.filter, item.metric) for item in found.changes] == [
        ("choices", "none", "acc"),
        ("facts", "first-word", "exact_match"),
        ("facts", "none", "exact_match"),
        ("facts", "none", "f1"),
    ]


def test_texts_are_looked_through_for_loops(tmp_path: Path) -> None:
    before = [line(0, 1, LOOP), line(1, 1, LOOP), line(2, 1)]
    rates = compared(tmp_path, before, [line(0, 1, LOOP), line(1, 1), line(2, 1)]).loops
    assert [(rate.arm, rate.texts, rate.looped) for rate in rates] == [("unpatched", 3, 2), ("mine", 3, 1)]


def test_choices_have_no_texts(tmp_path: Path) -> None:
    lines = [line(0, 1, resps=[[[-1.5, True]], [["-2.5", "False"]]]), line(1, 1, resps=[["-1.5", "True"]])]
    assert compared(tmp_path, lines, lines).loops == ()


def test_the_latest_run_of_a_task_counts(tmp_path: Path) -> None:
    write(tmp_path / "one", [line(0, 0)], time="2026-11-29T11-00-00.000000")
    found = read_results("a", write(tmp_path / "one", [line(0, 1)]))
    assert [sample.scores for sample in found.samples.values()] == [{"exact_match": 1.0}]


def test_a_models_own_folder_is_taken_too(tmp_path: Path) -> None:
    folder = write(tmp_path / "one", [line(0, 1)]) / "some__model"
    assert len(read_results("a", folder).samples) == 1


def test_older_versions_list_no_metrics(tmp_path: Path) -> None:
    old = {key: value for key, value in line(0, 1, acc=0.5).items() if key not in {"metrics", "filter"}}
    (sample,) = read_results("a", write(tmp_path / "one", [old])).samples.values()
    assert sample.scores == {"exact_match": 1.0, "acc": 0.5}


@pytest.mark.parametrize("score", [10**400, float("nan"), float("inf"), "1", None, [1.0]])
def test_what_is_no_score_is_left_out(tmp_path: Path, score: Any) -> None:
    odd = line(0, 1, metrics=["exact_match", "odd", ["list"], 7], odd=score)
    found = read_results("a", write(tmp_path / "one", [odd]))
    assert [sample.scores for sample in found.samples.values()] == [{"exact_match": 1.0}]
    assert found.left_out == {"facts": {"odd"}}


def test_what_cant_be_paired_is_noted(tmp_path: Path) -> None:
    before = [line(0, 1, metrics=["exact_match", "bleu"], bleu=["a", "b"]), line(1, 1), line(2, 1)]
    found = compared(tmp_path, before, [line(0, 1), line(3, 1)])
    assert [change.documents for change in found.changes] == [1]
    assert found.notes == (
        "2 results of unpatched have none of mine beside them and are left out",
        "1 results of mine have none of unpatched beside them and are left out",
        "facts: bleu can't be compared document by document",
    )


# What is refused


def test_other_questions_are_refused(tmp_path: Path) -> None:
    said = refused(tmp_path, [line(0, 1)], [line(0, 1, prompt_hash="other")])
    assert said == (
        "--lm-eval: document 0 of facts is another one for mine than for unpatched: give all arms the same version of "
        "the task, the same few-shot examples and the same chat template"
    )


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["no json"], f"one/some__model/samples_facts_{TIME}.jsonl:1: is no sample of lm-evaluation-harness"),
        ([[1]], f"one/some__model/samples_facts_{TIME}.jsonl:1: is no sample of lm-evaluation-harness"),
        ([{"doc_id": True}], f"one/some__model/samples_facts_{TIME}.jsonl:1: is no sample of lm-evaluation-harness"),
        (
            [line(0, 1), line(0, 1)],
            f"one/some__model/samples_facts_{TIME}.jsonl:2: document 0 stands twice under the fil",
        ),
        (["[" * 100_000], f"one/some__model/samples_facts_{TIME}.jsonl:1: is no sample of lm-evaluation-harness"),
        ([], "one: the harness's files hold no samples"),
    ],
)
def test_a_file_that_is_wrong_is_refused(tmp_path: Path, lines: list[Any], reason: str) -> None:
    assert refused(tmp_path, lines).startswith(reason)


def test_nothing_in_common_is_refused(tmp_path: Path) -> None:
    said = refused(tmp_path, [line(0, 1)], [line(1, 1)])
    assert said == "--lm-eval: unpatched and mine have no document in common"


def test_folders_that_are_none_of_the_harness_are_refused(tmp_path: Path) -> None:
    assert refusal(lambda: read_results("a", tmp_path / "no"), UsageError) == f"{tmp_path / 'no'}: no such folder"
    said = "has no samples_*.jsonl of lm-evaluation-harness, which --output_path with --log_samples writes"
    assert refusal(lambda: read_results("a", tmp_path), UsageError) == f"{tmp_path}: {said}"


def test_several_models_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "one", [line(0, 1)])
    shutil.copytree(tmp_path / "one" / "some__model", tmp_path / "one" / "another")
    (tmp_path / "one" / "another" / f"samples_facts_{TIME}.jsonl").rename(
        tmp_path / "one" / "another" / f"samples_more_{TIME}.jsonl"
    )
    said = f"{tmp_path / 'one'}: holds results of several models; name the folder of one, such as "
    assert refusal(lambda: read_results("a", tmp_path / "one"), UsageError) == f"{said}{tmp_path / 'one' / 'another'}"


# The command


def arms(folder: Path) -> list[str]:
    return ["--lm-eval", f"unpatched={folder / 'one'}", "--lm-eval", f"mine={folder / 'other'}"]


def test_the_command_prints_tables_and_writes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "one", [line(0, 1), line(1, 1, LOOP)])
    write(tmp_path / "other", [line(0, 1), line(1, 0)])
    assert main(["evaluate", *arms(tmp_path), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "| mine | facts | exact_match | 2 | 1 | 0.5 | -0.5000 (-0.8982 to +0.3982) | 1 | 0 | 1 |\n" in printed
    assert "| unpatched | facts | 2 | 1, 50.0 % (9.5 to 90.5) |\n" in printed
    assert (tmp_path / "out" / "lm-eval.md").read_text().startswith("# lm-evaluation-harness\n\n| arm | task |")
    data = json.loads((tmp_path / "out" / "lm-eval.json").read_text())
    assert (data["arms"], data["changes"][0]["lost"]) == (["unpatched", "mine"], 1)


def test_as_json_nothing_is_nan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "one", [line(0, 1)])
    write(tmp_path / "other", [line(0, 0)])
    assert main(["evaluate", *arms(tmp_path), "--out", str(tmp_path / "out"), "--json"]) == 0
    (change,) = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["changes"]
    assert change["difference"] == {"value": -1.0, "low": None, "high": None}


@pytest.mark.parametrize("words", [["mine"], ["=x"], ["mine=x"], ["a=x", "mine"]])
def test_arms_need_a_name_and_a_folder(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [word for one in words for word in ("--lm-eval", one)]
    assert main(["evaluate", *given, "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith(": expected two or more NAME=DIR, the first the baseline\n")


def test_two_arms_of_one_name_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write(tmp_path / "one", [line(0, 1)])
    assert main(["evaluate", "--lm-eval", f"a={one}", "--lm-eval", f"a={one}", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == "vllm-surgery: error: --lm-eval: two arms are called a\n"


def test_arms_beside_a_trial_are_the_trials(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    TrialFolder(tmp_path / "out").open(Trial.of(load_protocol("small"), [unpatched()], {}))
    for name in ("one", "other"):
        write(tmp_path / name, [line(0, 1)])
    assert main(["evaluate", *arms(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "its trial has no arm mine; it has unpatched" in capsys.readouterr().err


# What the harness itself wrote: see recorded/README.md


def test_files_of_the_harness_itself_are_read() -> None:
    one, other = (read_results(name, RECORDED / name) for name in ("one", "other"))
    assert one.tasks == other.tasks == ["short_choices", "short_facts"]
    found = compare_results([one, other])
    assert [(item.task, item.filter, item.metric, item.documents) for item in found.changes] == [
        ("short_choices", "none", "acc", 8),
        ("short_facts", "first-word", "exact_match", 16),
    ]
    assert [(rate.arm, rate.task, rate.texts, rate.looped) for rate in found.loops] == [
        ("one", "short_facts", 16, 0),
        ("other", "short_facts", 16, 0),
    ]
    assert found.notes == ()


def test_the_means_are_those_that_the_harness_printed() -> None:
    one, other = (read_results(name, RECORDED / name) for name in ("one", "other"))
    choices, facts = compare_results([one, other]).changes
    assert ((choices.before, choices.after), (facts.before, facts.after)) == (PRINTED, (0.0, 0.0))
