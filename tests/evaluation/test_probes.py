# SPDX-License-Identifier: Apache-2.0
"""Probe files: those that come with the package, and what is wrong with a user's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.examples import refusal
from vllm_surgery.errors import UsageError
from vllm_surgery.evaluation.probes import built_in, load_probes

if TYPE_CHECKING:
    from pathlib import Path

GOOD = "name: mine\nuse: loops\nprobes:\n  - {id: a, prompt: List things.}\n"


def test_the_papers_eight_subjects_are_there() -> None:
    assert len(load_probes("paper").probes) == 8


def test_the_second_set_is_divided_once_and_for_all() -> None:
    """A digest, so that nobody moves a prompt from one half to the other unnoticed."""
    lists = load_probes("lists")
    assert lists.halves() == {"held-out": 24, "search": 24}
    assert lists.digest == "8c25bb02668df14fda67c7ca760d85555fb40649232d580fd6fb6ceccf5935fc"


def test_a_half_of_a_set() -> None:
    searched, held_out = load_probes("lists:search"), load_probes("lists:held-out")
    assert (searched.halves(), held_out.halves()) == ({"search": 24}, {"held-out": 24})
    assert "paper: has no half search" in refusal(lambda: load_probes("paper:search"), UsageError)


@pytest.mark.parametrize("name", built_in())
def test_a_set_of_the_package_is_sound(name: str) -> None:
    assert load_probes(name).name == name
    assert load_probes(name).probes


def test_a_users_own_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(GOOD)
    assert [probe.prompt for probe in load_probes(str(file)).probes] == ["List things."]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "the probe file is empty"),
        ("name: a\nuse: loops\nprobes: []\n", "the probe file has no probes"),
        ("- a\n", "is no probe file: expected a mapping with `name`, `use` and `probes`"),
        ("name: a\nuse: cure\nprobes: [{id: a, prompt: b}]\n", "use: Input should be"),
        ("name: a\nuse: loops\nprobes: [{id: a, prompt: ''}]\n", "probes.0.prompt: "),
        ("name: a\nuse: loops\nprobes: [{id: a, prompt: b}, {id: a, prompt: c}]\n", "the id a stands twice"),
        ("name: a\nuse: short\nprobes: [{id: a, prompt: b}]\n", "a: a probe for `use: short` needs `items`"),
        ("name: !!python/name:os.system a\n", "tag"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, content: str, reason: str) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(content)
    text = refusal(lambda: load_probes(str(file)), UsageError)
    assert text.startswith(f"{file}: ")
    assert reason in text


def test_an_unknown_set_names_the_known_ones() -> None:
    assert "healthy, held-out-short, held-out-skills, held-out-text, lists, paper" in refusal(
        lambda: load_probes("papers"), UsageError
    )


def test_a_missing_file(tmp_path: Path) -> None:
    assert "no such file" in refusal(lambda: load_probes(str(tmp_path / "no.yaml")), UsageError)
