# SPDX-License-Identifier: Apache-2.0
"""What a candidate does to loops and to what was sound, which of two is better, and the Pareto front of many."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.localization.fake import candidate, measure_of, neuron
from vllm_surgery.evaluation.analysis.side_effects import Tasks
from vllm_surgery.evaluation.backends.base import TokenLogprobs
from vllm_surgery.evaluation.drift import Drift, drift
from vllm_surgery.evaluation.records import FoundLoop, Key, Record
from vllm_surgery.localization.search.measurements import Cost, LoopChange, Measurement, pareto_front
from vllm_surgery.localization.settings import SearchSettings

SETTINGS = SearchSettings(max_kl=0.05, max_perplexity=1.02)
A, B = candidate(neuron(0, 1)), candidate(neuron(0, 2))


def record(*kinds: str, outcome: str = "terminal", text: str = "one\ntwo\n") -> Record:
    loops = [FoundLoop(kind, 4, 2, 20.0, 84, outcome, 12, 18) for kind in kinds]
    return Record(Key("a", "greedy", "lists", "p", 0), None, "List", {}, text, list(range(84)), "stop", loops)


def drift_of(kl: float, loss: float, tokens: int = 10) -> Drift:
    return Drift("t", tokens, kl, tokens, base_loss=10.0, loss=loss, rest=0.0)


def test_answers_are_compared_one_by_one() -> None:
    base = [record("verbatim"), record("verbatim", "doom"), record(), record("decay")]
    other = [record(), record("verbatim"), record("doom"), record()]
    found = LoopChange.of(base, other)
    assert (found.answers, found.base, found.looped, found.rescued, found.newly) == (4, 3, 2, 2, 1)
    assert found.kinds == {"verbatim": (2, 1), "decay": (1, 0), "collapse": (0, 0), "doom": (1, 1)}


def test_a_loop_that_was_left_is_no_loop() -> None:
    assert LoopChange.of([record("verbatim", outcome="escaped")], [record()]).base == 0


def test_entries_are_of_all_answers_together() -> None:
    base = [record(text="one\ntwo\nthree\n"), record(text="one\n")]
    assert LoopChange.of(base, [record(text="one\n"), record(text="one\n")]).entries == 0.5


def test_entries_of_no_answer_say_nothing() -> None:
    found = LoopChange.of([record(text="")], [record(text="one\n")])
    assert math.isnan(found.entries)
    assert Measurement(A, found, None).excess(SETTINGS) == []


def test_cost_is_a_token_over_all_texts() -> None:
    cost = Cost.of([drift_of(1.0, 11.0, 10), drift_of(5.0, 10.0, 30)], [])
    assert cost.kl == pytest.approx(6 / 40)
    assert cost.perplexity == pytest.approx(math.exp(1 / 40))
    assert (cost.lost, cost.won, cost.form) == (None, None, None)


def test_cost_counts_tasks_of_all_sets() -> None:
    tasks = [Tasks(4, 3, ["a"], [], 1.0, 2, 4), Tasks(6, 6, ["b", "c"], ["d"], 1.0, 1, 1)]
    cost = Cost.of([drift_of(0.0, 10.0)], tasks)
    assert (cost.lost, cost.won, cost.form) == (3, 1, 0.5)


def test_a_perplexity_beyond_any_float_is_infinite() -> None:
    assert Cost.of([drift_of(1.0, 1e5)], []).perplexity == math.inf


def test_probabilities_that_a_float_cannot_tell_from_none_still_have_a_divergence() -> None:
    """What a model says whose layer was silenced."""
    base = TokenLogprobs([1], [-0.1], [{1: -0.1, 2: -3.0}])
    far = TokenLogprobs([1], [-900.0], [{1: -900.0, 2: -0.01}])
    assert drift("t", base, far).kl == pytest.approx(math.exp(-0.1) * 899.9, rel=0.01)


@pytest.mark.parametrize(
    ("measure", "excess"),
    [
        (measure_of(A, 0), []),
        (measure_of(A, 0, 0.05, perplexity=1.02, lost=2, won=2), []),
        (measure_of(A, 0, entries=0.75), []),
        (measure_of(A, 0, entries=0.74), ["entries"]),
        (measure_of(A, 0, 0.051), ["kl"]),
        (measure_of(A, 0, math.nan), ["kl"]),
        (measure_of(A, 0, perplexity=1.021), ["perplexity"]),
        (measure_of(A, 0, perplexity=math.inf), ["perplexity"]),
        (measure_of(A, 0, lost=2, won=1), ["tasks"]),
        (measure_of(A, 0, 9.0, perplexity=2.0, lost=1, won=0, entries=0.1), ["entries", "kl", "perplexity", "tasks"]),
        (measure_of(A, 0, None, entries=0.1), ["entries"]),
    ],
)
def test_what_costs_too_much_is_named(measure: Measurement, excess: list[str]) -> None:
    assert measure.excess(SETTINGS) == excess


def test_the_best_stay_within_bounds_then_loop_least_then_cost_least_then_are_smallest() -> None:
    pair = candidate(neuron(0, 1), neuron(0, 2))
    order = [
        measure_of(A, 1, 0.01),
        measure_of(A, 1, 0.02),
        measure_of(pair, 1, 0.02),
        measure_of(A, 1, None),
        measure_of(A, 2, 0.0),
        measure_of(A, 0, 0.5),
        measure_of(A, 0, math.nan),
    ]
    backwards = order[::-1]
    assert sorted(backwards, key=lambda one: one.rank(SETTINGS)) == order


def test_equal_measures_have_one_order() -> None:
    both = [measure_of(A, 1), measure_of(B, 1)]
    ranks = [one.rank(SETTINGS) for one in both]
    assert ranks[0] != ranks[1]
    assert ranks[0][:-1] == ranks[1][:-1]


measures = st.lists(
    st.builds(measure_of, st.just(A), st.integers(0, 6), st.sampled_from([None, math.nan, 0.0, 0.01, 0.02, 0.3, 4.0]))
)


@given(measures)
def test_the_front_is_exactly_what_nothing_beats(many: list[Measurement]) -> None:
    best = pareto_front(many)
    known = [(one.kl, one.loops.looped) for one in many if one.kl is not None]
    unbeaten = {one for one in known if not any(o != one and o[0] <= one[0] and o[1] <= one[1] for o in known)}
    assert [(one.kl, one.loops.looped) for one in best] == sorted(unbeaten)


def test_what_cannot_be_said_is_null() -> None:
    data = measure_of(A, 0, math.nan, entries=math.nan).to_data()
    assert (data["loops"]["entries"], data["cost"]["kl"], data["cost"]["lost"]) == (None, None, None)
    json.dumps(data, allow_nan=False)
    assert replace(measure_of(A, 0), cost=None).to_data()["cost"] is None
