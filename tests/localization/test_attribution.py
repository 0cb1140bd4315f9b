# SPDX-License-Identifier: Apache-2.0
"""What is looked into, and how rankings become candidates."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.examples import refusal
from tests.localization.fake import candidate, neuron
from vllm_surgery.errors import UsageError
from vllm_surgery.evaluation.records import FoundLoop, Key, Record
from vllm_surgery.localization.attribution import (
    MIN_LOOP_TOKENS,
    RANKING_FILE,
    Attribution,
    by_activity,
    interleave,
    load_or_compute,
    passages,
    within,
)
from vllm_surgery.patch.units import MASK, Unit

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vllm_surgery.localization.transcripts import Passage
    from vllm_surgery.patch.units import UnitBlock

A, B, C, D = (candidate(neuron(layer, 1)) for layer in range(4))


def loop(kind: str = "verbatim", onset: int = 10, period: int = 4, outcome: str = "terminal") -> FoundLoop:
    return FoundLoop(kind, onset, period, 5.0, 60, outcome, 0, 0)


def answer(*loops: FoundLoop, tokens: int = 60) -> Record:
    key = Key("none", "greedy", "lists", "p", 0)
    return Record(key, None, "List", {}, "", list(range(100, 100 + tokens)), "length", list(loops))


def passages_of(*records: Record) -> list[Passage]:
    return passages(records, lambda prompt: [ord(letter) for letter in prompt])


def test_a_passage_is_the_prompt_in_its_template_and_the_answer() -> None:
    (found,) = passages_of(answer())
    assert found.tokens == [*b"List", *range(100, 160)]
    assert (found.start, found.repeats) == (4, None)


def test_a_loop_repeats_from_its_second_copy_on() -> None:
    (found,) = passages_of(answer(loop(onset=10, period=4)))
    assert found.repeats == 4 + 10 + 4
    assert found.tokens[found.after.start + 1] == 100 + 14  # The row before predicts the first repeated token.


def test_of_several_kinds_the_verbatim_one_says_where_it_repeats() -> None:
    (found,) = passages_of(answer(loop("decay", onset=2, period=3), loop("verbatim", onset=20, period=5)))
    assert found.repeats == 4 + 20 + 5


def test_without_a_verbatim_one_the_first_does() -> None:
    (found,) = passages_of(answer(loop("doom", onset=12, period=9), loop("decay", onset=5, period=3)))
    assert found.repeats == 4 + 5 + 3


def test_a_loop_that_was_left_is_neither_looping_nor_sound() -> None:
    assert passages_of(answer(loop(outcome="escaped"))) == []


def test_what_the_second_judge_alone_calls_a_loop_is_neither() -> None:
    assert passages_of(replace(answer(), text="and so on, " * 30)) == []


def test_what_both_judges_call_a_loop_loops() -> None:
    (found,) = passages_of(replace(answer(loop()), text="and so on, " * 30))
    assert found.repeats is not None


def test_of_a_loop_that_was_left_before_another_the_other_counts() -> None:
    (found,) = passages_of(answer(loop(onset=2, outcome="escaped"), loop(onset=30, period=4)))
    assert found.repeats == 4 + 34


def test_a_loop_with_little_behind_its_first_copy_is_left_out() -> None:
    long_enough, too_short = 14 + MIN_LOOP_TOKENS, 14 + MIN_LOOP_TOKENS - 1
    assert len(passages_of(answer(loop(onset=10, period=4), tokens=long_enough))) == 1
    assert passages_of(answer(loop(onset=10, period=4), tokens=too_short)) == []


def test_an_empty_answer_is_left_out() -> None:
    assert passages_of(answer(tokens=0)) == []


def test_neurons_that_say_more_in_loops_are_silenced_and_inverted_and_others_made_stronger() -> None:
    more, less = Unit("neurons", 0, 1), Unit("neurons", 2, 5)
    found = by_activity([(more, 2.0), (less, -1.0)], mask=True)
    assert [one.gains for one in found] == [((more, 0.0),), ((more, -1.0),), ((less, 3.0),)]
    assert {one.origin for one in found} == {"activity"}


def test_experts_are_masked_where_that_is_tried() -> None:
    more, less = Unit("experts", 0, 1), Unit("experts", 2, 5)
    scores = [(more, 2.0), (less, -1.0)]
    assert [one.gains[0][1] for one in by_activity(scores, mask=True)] == [MASK, 0.0, 2.0]
    assert [one.gains[0][1] for one in by_activity(scores, mask=False)] == [0.0, 2.0]


def test_within_layers_means_with_all_units() -> None:
    both = candidate(neuron(0, 1), neuron(3, 1))
    assert within([A, B, both], [("neurons", 0), ("experts", 1)]) == [A]


def test_rankings_take_turns_each_once_within_the_layers_that_matter_and_once_everywhere() -> None:
    matter: list[UnitBlock] = [("neurons", 2), ("neurons", 3)]
    assert interleave([[A, C], [B, D]], matter, 9) == [C, A, D, B]
    assert interleave([[A, C], [B, D]], matter, 3) == [C, A, D]
    assert interleave([[], [B, D]], [], 9) == [B, D]


def test_an_attribution_comes_back_from_json() -> None:
    one = Attribution([A, B], [candidate(neuron(0, 1), neuron(0, 2))], ["no gradients: why"])
    assert Attribution.from_data(json.loads(json.dumps(one.to_data()))) == one


def test_a_ranking_is_made_once_and_never_lies_there_by_halves(tmp_path: Path) -> None:
    made: list[int] = []

    def make(records: Sequence[Record], matter: Sequence[UnitBlock], seconds: float) -> Attribution:
        made.append(len(records))
        assert not (tmp_path / RANKING_FILE).exists()
        return Attribution([A])

    assert (
        load_or_compute(tmp_path, make, [answer()], [])
        == load_or_compute(tmp_path, make, [answer()], [])
        == Attribution([A])
    )
    assert made == [1]
    assert [file.name for file in tmp_path.iterdir()] == [RANKING_FILE]


def test_what_a_kill_left_of_a_ranking_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "ranking.part").write_text('{"singles": [')
    assert load_or_compute(tmp_path, lambda *_: Attribution([A]), [], []) == Attribution([A])


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"singles": [{}], "sets": [], "notes": []}', '{"singles": 1}'])
def test_a_file_that_is_no_ranking(tmp_path: Path, content: str) -> None:
    (tmp_path / RANKING_FILE).write_text(content)
    said = refusal(lambda: load_or_compute(tmp_path, lambda *_: Attribution([A]), [], []), UsageError)
    assert said == f"{tmp_path / RANKING_FILE}: not a ranking of a search"
