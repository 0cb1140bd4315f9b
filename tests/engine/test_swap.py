# SPDX-License-Identifier: Apache-2.0
"""A running engine that swaps patches == a fresh engine with those patches, bit for bit."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.offline import Arm, run_arms
from tests.engine.test_load import GAINS, MANY, same
from tests.models import LAYERS, WIDTH, patch_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    Answers = dict[str, dict[str, Any]]

pytestmark = pytest.mark.engine

FIRST = patch_of(GAINS, "first")
SECOND = patch_of({(0, 0): 2.0, (3, 9): -1.0, (7, 100): 0.25}, "second")
"""Shares a neuron with the first, a layer, and has a layer of its own."""

STRANGER = patch_of({(LAYERS, 0): -1.0}, "stranger")


def random_swaps(number: int, seed: int, layers: Sequence[int] = range(LAYERS)) -> list[list[Any]]:
    """Patches of every size in these layers, some of them none at all."""
    chance = random.Random(seed)
    swaps = []
    for _ in range(number):
        units = {(chance.choice(layers), chance.randrange(WIDTH)) for _ in range(chance.randrange(6))}
        gains = {unit: chance.choice([-1.0, 0.0, 0.5, -0.8, 3.0, 1e-3]) for unit in sorted(units)}
        swaps.append([patch_of(gains, "random")] if gains else [])
    return swaps


@pytest.fixture(scope="module")
def answers(family_model: Callable[[str], Path]) -> Answers:
    base = str(family_model("Llama"))
    arms = {
        "base": Arm(base, [], digest=True),
        "second": Arm(base, [SECOND], digest=True),
        "many": Arm(base, [patch_of(MANY)]),
        "first to second": Arm(base, [FIRST], swaps=[[SECOND]], digest=True),
        "none to second": Arm(base, swaps=[[SECOND]], digest=True),
        "first to none": Arm(base, [FIRST], swaps=[[]], digest=True),
        "none to many": Arm(base, swaps=[[patch_of(MANY)]]),
        "nothing held ready": Arm(base, [FIRST], swaps=[[SECOND]], ready_bytes=0),
        "200 swaps to second": Arm(base, [FIRST], swaps=[*random_swaps(200, 1), [SECOND]], digest=True),
        "200 swaps to none": Arm(base, [FIRST], swaps=[*random_swaps(200, 2), []], digest=True),
        "refused": Arm(base, [SECOND], swaps=[[STRANGER], [FIRST, FIRST]], digest=True),
        "same again": Arm(base, [SECOND], swaps=[[SECOND]]),
        "reloaded": Arm(base, [FIRST], swaps=[[SECOND]], reload=True),
        "unpacked base": Arm(base, unpacked=True, digest=True),
        "unpacked second": Arm(base, [SECOND], unpacked=True, digest=True),
        "unpacked first to second": Arm(base, [FIRST], swaps=[[SECOND]], unpacked=True, digest=True),
        "unpacked first to none": Arm(base, [FIRST], swaps=[[SECOND], []], unpacked=True, digest=True),
    }
    return dict(zip(arms, run_arms(*arms.values()), strict=True))


@pytest.mark.parametrize(
    ("swapped", "fresh"),
    [
        ("first to second", "second"),
        ("none to second", "second"),
        ("first to none", "base"),
        ("none to many", "many"),
        ("nothing held ready", "second"),
        ("200 swaps to second", "second"),
        ("200 swaps to none", "base"),
        ("reloaded", "second"),
        ("unpacked first to second", "unpacked second"),
        ("unpacked first to none", "unpacked base"),
    ],
)
def test_swapped_equals_fresh(answers: Answers, swapped: str, fresh: str) -> None:
    assert same(answers[swapped], answers[fresh])
    assert answers[swapped]["digest"] == answers[fresh]["digest"] or answers[swapped]["digest"] is None


def test_the_patches_differ(answers: Answers) -> None:
    assert len({str(answers[name]["logprobs"]) for name in ("base", "second", "many")}) == 3
    assert answers["base"]["digest"] != answers["second"]["digest"]


def test_all_swaps_were_carried_out(answers: Answers) -> None:
    reports = answers["200 swaps to second"]["swaps"]
    assert not [report for report in reports if "error" in report]
    assert reports[-1]["id"] == answers["second"]["weight_version"]


def test_every_output_carries_the_new_id(answers: Answers) -> None:
    assert answers["first to second"]["weight_version"] == answers["second"]["weight_version"]
    assert answers["first to second"]["weight_versions"] == answers["second"]["weight_versions"]
    assert answers["first to none"]["weight_version"] == "default"


def test_the_report_says_what_was_done(answers: Answers) -> None:
    (report,) = answers["first to second"]["swaps"]
    names = [report[side].split("@")[0] for side in ("previous", "id")]
    assert names == ["first", "second"]
    assert (report["epoch"], report["units"], report["tensors"]) == (1, 3, 3)
    assert report["modules"] == len({0, 3, 5, 11, 7}), "layers of either patch, and no other"


def test_a_refused_swap_changes_nothing(answers: Answers) -> None:
    out_of_range, twice = [report["error"] for report in answers["refused"]["swaps"]]
    assert out_of_range == (
        f"MismatchError: stranger: edits[0].neurons.{LAYERS}: layer {LAYERS} is out of range: "
        f"the model has {LAYERS} layers"
    )
    assert twice.startswith("PatchError: first: ")
    assert "already named in first" in twice
    assert same(answers["refused"], answers["second"])
    assert answers["refused"]["digest"] == answers["second"]["digest"]


def test_swapping_to_what_is_active_does_nothing(answers: Answers) -> None:
    (report,) = answers["same again"]["swaps"]
    assert (report["epoch"], report["modules"], report["milliseconds"]["pause"]) == (0, 0, 0.0)


def test_after_a_reload_by_somebody_else_the_engine_can_not_swap(answers: Answers) -> None:
    (report,) = answers["reloaded"]["reports"]
    assert report["cannot_swap"] == "weights were loaded since the start by something else than a swap"
