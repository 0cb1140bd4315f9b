# SPDX-License-Identifier: Apache-2.0
"""Probe files: those that come with the package, and what is wrong with a user's own."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from tests.evaluation.sets import lists, tasks
from tests.evaluation.sets.lists import PARTS
from tests.examples import refusal
from vllm_surgery.errors import UsageError
from vllm_surgery.evaluation.probes import Probe, ProbeSet, built_in, load_probes, named_twice

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


@pytest.mark.parametrize(
    ("made", "digest"),
    [
        (lists.make(), "d3ccda393358a755cc016c04504090e09576a53cfd50903be5a1c56adc4117b8"),
        (tasks.make(), "81daf15d47f9e2a5dd3ee6571535f2945209c4395285ae40ecad32779ee2612e"),
    ],
)
def test_the_wide_sets_are_what_their_makers_make(made: dict[str, Any], digest: str) -> None:
    kept = load_probes(made["name"])
    assert kept == ProbeSet.model_validate(made)
    assert kept.digest == digest  # Nobody moves a prompt to another part unnoticed.


def test_the_wide_lists_have_thirds_without_a_subject_in_common() -> None:
    lists_of = {part: load_probes(f"wide-lists:{part}").probes for part in PARTS}
    subjects = {part: {probe.subject for probe in probes} for part, probes in lists_of.items()}
    assert {part: len(probes) for part, probes in lists_of.items()} == dict.fromkeys(PARTS, 80)
    assert {len(found) for found in subjects.values()} == {48}
    assert len(set().union(*subjects.values())) == 3 * 48
    ways = [Counter(probe.id.rpartition(".")[2] for probe in probes) for probes in lists_of.values()]
    assert all(set(found.values()) == {8} and len(found) == 10 for found in ways)


def test_any_beginning_of_the_wide_lists_has_all_kinds_and_ways() -> None:
    first = load_probes("wide-lists:held-out").probes[:64]
    assert len({probe.id.partition(".")[0] for probe in first}) == 24
    assert set(Counter(probe.id.rpartition(".")[2] for probe in first).values()) == {6, 7}


def test_right_entries_of_the_wide_lists_stand_there_once() -> None:
    for probe in load_probes("wide-lists").probes:
        names = [name for names in probe.short_list().items for name in names]
        assert len(names) == len(set(names)), probe.id
        assert names == [name.lower() for name in names]


def test_no_task_stands_in_two_sets() -> None:
    sets = [load_probes(name) for name in built_in() if load_probes(name).use in {"short", "skills"}]
    prompts = [probe.prompt for one in sets for probe in one.probes if one.name == "wide-tasks"]
    others = {probe.prompt for one in sets for probe in one.probes if one.name != "wide-tasks"}
    assert len(prompts) == len(set(prompts)) == 210
    assert not others & set(prompts)


def test_a_prompt_of_a_model_that_completes() -> None:
    probe = Probe(id="a", prompt="List things.", completion="Things:\n1.")
    assert (probe.asked("chat"), probe.asked("completion")) == ("List things.", "Things:\n1.")
    assert Probe(id="a", prompt="List things.").asked("completion") == "List things.\n\n"


def test_a_half_of_a_set() -> None:
    searched, held_out = load_probes("lists:search"), load_probes("lists:held-out")
    assert (searched.halves(), held_out.halves()) == ({"search": 24}, {"held-out": 24})
    assert "paper: has no half search" in refusal(lambda: load_probes("paper:search"), UsageError)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ([], None),
        (["lists:search", "lists:held-out", "paper"], None),
        (["a/mine.yaml", "b/mine.yaml"], None),
        (["lists", "paper", "lists"], "lists: is named twice"),
        (["lists:search", "lists:search"], "lists:search: is named twice"),
        (["lists", "lists:search"], "lists:search: has prompts in common with lists"),
        (["lists:search", "lists"], "lists: has prompts in common with lists:search"),
        (["mine.yaml", "a/../mine.yaml"], "a/../mine.yaml: has prompts in common with mine.yaml"),
    ],
)
def test_a_set_beside_itself_or_a_part_of_itself_is_named_twice(names: list[str], reason: str | None) -> None:
    assert named_twice(names) == reason


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
    assert "choice-text, healthy, held-out-short, held-out-skills, held-out-text, lists, paper" in refusal(
        lambda: load_probes("papers"), UsageError
    )


def test_a_missing_file(tmp_path: Path) -> None:
    assert "no such file" in refusal(lambda: load_probes(str(tmp_path / "no.yaml")), UsageError)
