# SPDX-License-Identifier: Apache-2.0
"""What one patch may say at most, and that nothing grows faster than it does."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest

from tests.examples import patch_data, refusal, zero
from vllm_surgery.errors import PatchError
from vllm_surgery.patch.bounds import MAX_EDITS, MAX_SPANS
from vllm_surgery.patch.format import Patch
from vllm_surgery.patch.patch_set import LONGEST_ID, MOST_PATCHES, PatchSet, SourcedPatch
from vllm_surgery.patch.units import Assignment, IndexRange, UnitMap


def edits(count: int) -> list[dict[str, Any]]:
    return [zero({"1": [2 * number]}) for number in range(count)]


def test_as_many_edits_as_may_be() -> None:
    assert len(Patch.from_data(patch_data(*edits(MAX_EDITS))).edits) == MAX_EDITS


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (edits(MAX_EDITS + 1), "edits: 4097 edits; a patch may have at most 4096"),
        ([1] * 100_000, "edits: 100000 edits; a patch may have at most 4096"),
        (
            [zero({"1": list(range(MAX_SPANS)), "2": ["1-9"]})],
            "edits: 65537 indices and ranges; a patch may have at most 65536",
        ),
        (
            [zero({"1": {"2": list(range(MAX_SPANS)), "3": "all"}}, "expert_neurons")],
            "edits: 65537 indices and ranges; a patch may have at most 65536",
        ),
    ],
)
def test_more_is_refused(wrong: list[Any], said: str) -> None:
    assert refusal(lambda: Patch.from_data(patch_data(edits=wrong), "p"), PatchError).startswith(f"p: {said}")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"edits": [1] * 4000}, "edits[0]: input should be a valid dictionary"),
        ({"edits": [zero({"1": [1]}) | {f"k{n}": 1 for n in range(50_000)}]}, "edits[0].k0: is not a key"),
        ({f"k{n}": 1 for n in range(50_000)}, "k0: is not a key of this format"),
        ({"": 1}, "is not a key of this format"),
        ({"seal": {f"x{n}": "1" for n in range(50_000)}}, "seal.x0: string should match pattern"),
        ({"seal": {"neurons/1/2": None}}, "seal.neurons/1/2: string should match pattern"),
        ({"model": {"architectures": [1] * 100_000}}, "model.architectures[0]: input should be a valid string"),
        ({"model": {"intermediate_size": ["a"] * 100_000}}, "model.intermediate_size: input should be a valid integer"),
    ],
)
def test_the_first_error_is_told_and_no_other_collected(changes: dict[str, Any], said: str) -> None:
    data = patch_data(**changes)
    tracemalloc.start()
    try:
        assert refusal(lambda: Patch.from_data(data, "p"), PatchError).startswith(f"p: {said}")
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("place", ["model", "provenance"])
def test_numbers_that_other_processes_cannot_be_sent_are_refused(place: str) -> None:
    data = patch_data(**{place: {"num_hidden_layers": 2**63}})
    assert "beyond 64 bits" in refusal(lambda: Patch.from_data(data, "p"), PatchError)


def members(count: int, name: str = "p") -> tuple[SourcedPatch, ...]:
    return tuple(
        SourcedPatch(f"{n}.yaml", Patch.from_data(patch_data(zero({str(n): [1]}), name=f"{name}{n}")))
        for n in range(count)
    )


def test_a_set_has_a_bound() -> None:
    assert len(PatchSet(members(MOST_PATCHES))) == MOST_PATCHES
    assert refusal(lambda: PatchSet(members(MOST_PATCHES + 1)), PatchError) == (
        "16.yaml: is one patch too many: at most 16 can be active together"
    )


def test_a_long_id_is_shortened_and_still_tells_sets_apart() -> None:
    whole, other = PatchSet(members(16, "n" * 60)), PatchSet(members(15, "n" * 60))
    assert len(whole.id) <= LONGEST_ID
    assert whole.id.startswith("n" * 60 + "0@")
    assert "+15-more@" in whole.id
    assert whole.id != other.id
    assert whole.id == PatchSet(whole.members[::-1]).id


def test_an_id_that_fits_names_all() -> None:
    patches = PatchSet(members(4))
    assert patches.id == "+".join(sorted(member.patch.id for member in patches.members))


def test_units_find_their_assignment() -> None:
    first = Assignment("experts", 1, (IndexRange(2, 4), IndexRange(9, 9)), 0.0, "s", "p")
    second = Assignment("experts", 1, (IndexRange(5, 6),), "mask", "s", "p")
    found = UnitMap([first, second])
    assert [found.of(index) for index in (0, 2, 4, 5, 6, 7, 9, 10)] == [
        None, first, first, second, second, None, first, None,
    ]  # fmt: skip
