# SPDX-License-Identifier: Apache-2.0
"""From single units to small sets, and to the smallest that does as well."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.localization.fake import candidate, measure_of, neuron
from vllm_surgery.localization.search.growth import MAX_SHRUNK_UNITS, grow, other_gains, pairs, shrink
from vllm_surgery.localization.settings import SearchSettings
from vllm_surgery.patch.units import MASK, Unit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from vllm_surgery.localization.candidates import Candidate
    from vllm_surgery.localization.search.measurements import Measurement

SETTINGS = SearchSettings()
UNITS = [neuron(0, index) for index in range(24)]
SINGLES = [candidate(unit) for unit in UNITS]


def rank(one: Measurement) -> tuple[Any, ...]:
    return one.rank(SETTINGS)


class World:
    """Each useful unit saves one answer of ten, alone or with others; a unit that costs is out of bounds."""

    def __init__(self, useful: set[int], costly: set[int] = frozenset(), budget: int = 10**6) -> None:
        self.useful, self.costly, self.budget = useful, costly, budget
        self.asked: list[Candidate] = []

    def all(self, candidates: Sequence[Candidate]) -> list[Measurement | None]:
        return [self(one) for one in candidates]

    def __call__(self, one: Candidate) -> Measurement | None:
        if len(self.asked) >= self.budget:
            return None
        self.asked.append(one)
        named = {key.index for key, _ in one.gains}
        return measure_of(one, 10 - len(named & self.useful), 1.0 if named & self.costly else 0.001 * len(named))


def start(world: Callable[[Candidate], Measurement | None], *indices: int) -> Measurement:
    found = world(candidate(*(UNITS[index] for index in indices)))
    assert found is not None
    return found


def units_of(one: Measurement) -> set[int]:
    return {key.index for key, _ in one.candidate.gains}


def test_a_neuron_is_tried_with_every_gain_and_never_masked() -> None:
    found = other_gains(SINGLES[0], [0.0, 3.0, MASK])
    assert [one.gains for one in found] == [((UNITS[0], gain),) for gain in (0.0, 3.0)]


def test_an_expert_is_masked_too() -> None:
    expert = candidate(Unit("experts", 0, 1))
    assert [one.gains[0][1] for one in other_gains(expert, [0.0, MASK])] == [0.0, MASK]


def test_pairs_are_every_two_without_a_unit_in_common() -> None:
    found = pairs([*SINGLES[:3], candidate(UNITS[0], gain=3.0)])
    named = [{(key.index, gain) for key, gain in one.gains} for one in found]
    assert named == [
        {(0, 0.0), (1, 0.0)},
        {(0, 0.0), (2, 0.0)},
        {(1, 0.0), (2, 0.0)},
        {(1, 0.0), (0, 3.0)},
        {(2, 0.0), (0, 3.0)},
    ]


def test_what_comes_of_two_pairs_is_tried_once() -> None:
    assert len(pairs([candidate(UNITS[0]), candidate(UNITS[1]), candidate(UNITS[1], origin="again")])) == 1


def test_it_grows_as_long_as_that_helps() -> None:
    world = World({0, 3, 5})
    grown = grow(start(world, 0), SINGLES[:8], 8, world.all, rank)
    assert units_of(grown) == {0, 3, 5}
    assert grown.candidate.origin == "grown"


def test_it_grows_to_no_more_units_than_are_wanted() -> None:
    world = World(set(range(8)))
    assert len(units_of(grow(start(world, 0), SINGLES[:8], 3, world.all, rank))) == 3


def test_what_costs_too_much_is_not_added() -> None:
    world = World({0, 1, 2}, costly={1})
    assert units_of(grow(start(world, 0), SINGLES[:3], 8, world.all, rank)) == {0, 2}


def test_growth_without_a_budget_keeps_what_it_has() -> None:
    world = World({0, 1}, budget=1)
    one = start(world, 0)
    assert grow(one, SINGLES[:3], 8, world.all, rank) == one
    assert grow(one, [], 8, World({0, 1}).all, rank) == one


def test_what_is_not_needed_is_dropped() -> None:
    world = World({1, 4})
    found = shrink(start(world, 0, 1, 2, 4), world, rank)
    assert units_of(found) == {1, 4}
    assert found.candidate.origin == "shrunk"


def test_of_an_edit_that_does_nothing_one_unit_is_left() -> None:
    world = World(set())
    assert len(units_of(shrink(start(world, 0, 1, 2), world, rank))) == 1


def test_a_single_unit_is_not_taken_apart() -> None:
    world = World({0})
    one = start(world, 0)
    assert shrink(one, world, rank) == one
    assert len(world.asked) == 1


def test_a_large_set_is_not_taken_apart() -> None:
    world = World(set())
    one = start(world, *range(MAX_SHRUNK_UNITS + 1))
    assert shrink(one, world, rank) == one


def test_shrinking_without_a_budget_keeps_what_it_has() -> None:
    world = World({0}, budget=1)
    one = start(world, 0, 1)
    assert shrink(one, world, rank) == one


numbers = st.sets(st.integers(0, 11))


@settings(max_examples=40)
@given(numbers, numbers, st.integers(1, 12))
def test_growing_and_shrinking_end_with_needed_units_alone_and_never_do_worse(
    useful: set[int], costly: set[int], most: int
) -> None:
    world = World(useful, costly - {0})
    one = start(world, 0)
    grown = grow(one, SINGLES[:12], most, world.all, rank)
    found = shrink(grown, world, rank)
    assert rank(found)[:2] <= rank(grown)[:2] <= rank(one)[:2]
    assert found.candidate.units <= most
    assert found.candidate.units == 1 or units_of(found) <= useful - world.costly
