# SPDX-License-Identifier: Apache-2.0
"""The documents and the checks of the run of lm-evaluation-harness; the run itself needs the harness, and minutes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.benchmarks.lm_eval_run import CHOICES, main, write_documents
from tests.benchmarks.lm_eval_tasks.checks import different_lines, right

if TYPE_CHECKING:
    from pathlib import Path


def documents(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documents") / "new"
    write_documents(folder, lists=3)
    return folder


def test_each_choice_is_among_four_different_ones_with_the_fact_s_answer_at_its_place(written: Path) -> None:
    facts, choices = documents(written, "facts"), documents(written, "choices")
    assert [one["question"] for one in choices] == [one["question"] for one in facts]
    assert {len(set(one["choices"])) for one in choices} == {CHOICES}
    assert [one["choices"][one["answer"]] for one in choices] == [one["answers"][0] for one in facts]


def test_numbers_are_written_without_a_point(written: Path) -> None:
    assert {"question": "What is 7 - 4? Answer with the number.", "answers": ["3"]} in documents(written, "facts")


def test_what_has_to_be_copied_exactly_is_no_fact(written: Path) -> None:
    assert not [one for one in documents(written, "facts") if "exactly" in one["question"]]


def test_as_many_lists_are_asked_for_as_was_said(written: Path) -> None:
    assert len(documents(written, "lists")) == 3


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("It is closed.", 1.0),
        ("SHUT", 1.0),
        ("It's disclosed, shutters and all.", 0.0),
        ("", 0.0),
    ],
)
def test_an_answer_is_right_that_says_one_of_the_words(said: str, found: float) -> None:
    assert right({"answers": ["closed", "shut"]}, [said]) == {"right": found}


def test_without_the_harness_nothing_is_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("sys.argv", ["lm_eval_run", "--model", "m", "--patch", "p", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "isn't installed here: pip install lm_eval[api], or say --lm-eval COMMAND" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_lines_are_compared_without_their_numbers() -> None:
    assert different_lines({}, ["1. Io\n2. Europa\n\n3. io\n- Europa\n* Metis"]) == {"different_lines": 3.0}
