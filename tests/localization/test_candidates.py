# SPDX-License-Identifier: Apache-2.0
"""A candidate is a map from units to gains, and its patch says the same."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.localization.fake import candidate, neuron
from vllm_surgery.errors import PatchError
from vllm_surgery.localization.candidates import Candidate, distinct, joined, round_robin, without
from vllm_surgery.patch.units import MASK, Gain, Unit, UnitBlock

if TYPE_CHECKING:
    from random import Random

A, B, C = neuron(0, 1), neuron(0, 2), neuron(2, 1)
EXPERT = Unit("experts", 1, 3)

keys = st.builds(Unit, st.sampled_from(["neurons", "experts"]), st.integers(0, 4), st.integers(0, 30))
factors = st.floats(-8, 8, width=32, allow_subnormal=False).filter(lambda factor: factor != 1.0)


@st.composite
def gain_maps(draw: st.DrawFn) -> dict[Unit, Gain]:
    found = draw(st.dictionaries(keys, factors, min_size=1, max_size=12))
    masked = draw(st.sets(st.sampled_from(sorted(found))))
    return {key: MASK if key in masked and key.kind == "experts" else gain for key, gain in found.items()}


@given(gain_maps())
def test_the_patch_gives_every_unit_the_candidates_gain_and_no_other(gains: dict[Unit, Gain]) -> None:
    patch = Candidate.of(gains, "x").patch("some", {})
    done = {Unit(item.kind, item.layer, index): item.gain for item in patch.assignments() for index in item.resolve(31)}
    assert done == gains


@given(gain_maps(), st.randoms(use_true_random=False))
def test_the_id_depends_on_the_edits_alone(gains: dict[Unit, Gain], random: Random) -> None:
    items = list(gains.items())
    random.shuffle(items)
    assert Candidate.of(dict(items), "one").id == Candidate.of(gains, "other").id


@given(gain_maps(), gain_maps())
def test_other_edits_have_another_id(first: dict[Unit, Gain], second: dict[Unit, Gain]) -> None:
    assume(first != second)
    assert Candidate.of(first, "x").id != Candidate.of(second, "x").id


@given(gain_maps())
def test_a_candidate_comes_back_from_json(gains: dict[Unit, Gain]) -> None:
    one = Candidate.of(gains, "x")
    back = Candidate.from_data(json.loads(json.dumps(one.to_data())))
    assert (back, back.id) == (one, one.id)


def test_a_whole_layer_is_one_unit_and_in_the_patch_all() -> None:
    one = candidate(UnitBlock("neurons", 3))
    assert one.units == 1
    assert one.patch("some", {}).to_data()["edits"] == [{"op": "zero", "neurons": {"3": "all"}}]
    assert str(one) == "neurons/3/all x 0"


def test_edits_of_one_kind_and_gain_stand_together_and_have_their_own_ops() -> None:
    gains = {A: 0.0, C: 0.0, B: -1.0, EXPERT: MASK}
    edits = Candidate.of(gains, "x").patch("some", {}).to_data()["edits"]
    assert sorted(map(json.dumps, edits)) == [
        '{"op": "mask", "experts": {"1": [3]}}',
        '{"op": "negate", "neurons": {"0": [2]}}',
        '{"op": "zero", "neurons": {"0": [1], "2": [1]}}',
    ]


def test_the_patch_carries_the_guard() -> None:
    assert candidate(A).patch("some", {"hidden_size": 64}).model.given() == {"hidden_size": 64}


def test_a_gain_that_changes_nothing_is_refused() -> None:
    with pytest.raises(PatchError, match="changes nothing"):
        candidate(A, gain=1.0).patch("some", {})


def test_two_candidates_joined_do_both() -> None:
    both = joined(candidate(A), candidate(B, gain=3.0), "pair")
    assert both == Candidate.of({A: 0.0, B: 3.0}, "pair")


def test_two_candidates_with_a_unit_in_common_cannot_be_joined() -> None:
    assert joined(candidate(A, B), candidate(B, C, gain=3.0), "pair") is None


def test_without_takes_one_unit_away() -> None:
    assert without(candidate(A, B, C), B, "shrunk") == candidate(A, C, origin="shrunk")


def test_distinct_keeps_the_first_of_those_that_do_the_same() -> None:
    first, again = candidate(A, origin="one"), candidate(A, origin="two")
    assert distinct([first, candidate(B), again]) == [first, candidate(B)]


def test_lists_take_turns_until_there_are_enough() -> None:
    one, two = [candidate(A), candidate(B)], [candidate(B), candidate(C), candidate(A)]
    assert round_robin(one, two, count=9) == [candidate(A), candidate(B), candidate(C)]
    assert round_robin(one, two, count=2) == [candidate(A), candidate(B)]
    assert round_robin(count=2) == []


def test_a_large_set_is_named_by_its_first_units_and_how_many() -> None:
    one = candidate(*(neuron(0, index) for index in range(6)), gain=-1.0)
    assert str(one).startswith("neurons/0/0 x -1, ")
    assert str(one).endswith(", ... (6 units)")
    assert str(Candidate.of({EXPERT: MASK}, "x")) == "experts/1/3 masked"
