# SPDX-License-Identifier: Apache-2.0
"""Columns that lost a direction: served with the patch == served from a checkpoint edited by hand, bit for bit; swapped
out again == never patched; and in slots up to rounding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.directions import edit_columns, project, unit, values_of
from tests.engine.kernels import SHARED_MEMORY, skip_without_op
from tests.engine.offline import Arm, run_arms
from tests.engine.requests.batches import CLOSE, answer_batch, largest_difference
from tests.engine.test_load import same
from tests.engine.test_two_ranks import TP
from tests.models import HIDDEN, WIDTH, make_model, patch_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Answers = dict[str, dict[str, Any]]

pytestmark = pytest.mark.engine

DIRECTIONS = [values_of(unit(HIDDEN, seed)) for seed in (1, 2)]


def patch(name: str = "lost", kind: str = "neurons", strength: float = 1.5) -> dict[str, Any]:
    """Two directions in two layers, from the first column to the last; and a gain beside them."""
    width = 96 if kind == "shared" else WIDTH
    edits = [
        project(DIRECTIONS[0], {"0": ["0-20"], "2": [5]}, strength, kind),
        project(DIRECTIONS[1], {"2": [6, width - 1]}, -1.0, kind),
        {"op": "negate", kind: {"2": [9]}},
    ]
    return {"version": 1, "name": name, "edits": edits}


def columns(owner: str = "mlp", strength: float = 1.5) -> dict[tuple[str, int], tuple[float, int]]:
    """The same by tensor and column: the strength, and which direction. Twice along one is a gain of no column."""
    names = [f"model.layers.{layer}.{owner}.down_proj.weight" for layer in (0, 2)]
    last = (96 if "shared" in owner else WIDTH) - 1
    lost = {(names[0], column): (strength, 1) for column in range(21)} | {(names[1], 5): (strength, 1)}
    return lost | {(names[1], 6): (-1.0, 2), (names[1], last): (-1.0, 2)}


CASES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "Llama": ("Llama", "neurons", "mlp", {}),
    "Llama, weights as stored": ("Llama", "neurons", "mlp", {"unpacked": True}),
    "Llama, two ranks": ("Llama", "neurons", "mlp", {"options": TP, "max_tokens": 5}),
    "Qwen2-MoE, shared": ("Qwen2Moe", "shared", "mlp.shared_expert", {}),
}
BF16 = "Llama in bfloat16"


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory, family_model: Callable[[str], Path]) -> Callable[[str], Answers]:
    work, made = tmp_path_factory.mktemp("lost"), dict[str, "Answers"]()

    def of(name: str) -> Answers:
        if name not in made:
            made[name] = _answers(name, work / name.replace(" ", "-"), family_model)
        return made[name]

    return of


def _answers(name: str, work: Path, family_model: Callable[[str], Path]) -> Answers:
    family, kind, owner, how = ("Llama", "neurons", "mlp", {}) if name == BF16 else CASES[name]
    base = make_model(work / "model", "Llama", torch.bfloat16) if name == BF16 else family_model(family)
    by_hand = edit_columns(base, work / "by-hand", columns(owner))
    wanted, negated = (
        patch(kind=kind),
        patch_of({}, "beside", **{kind: {(2, 9): -1.0}}) if kind == "shared" else patch_of({(2, 9): -1.0}, "beside"),
    )
    arms = {
        "base": Arm(str(base), [], later=[[wanted], []], **how),
        "patched": Arm(str(base), [wanted], later=[[], [wanted]], **how),
        "by hand": Arm(str(by_hand), [negated], **how),
    }
    for arm in arms.values():
        arm.options = {"dtype": "bfloat16" if name == BF16 else "float32", **arm.options}
    return dict(zip(arms, run_arms(*arms.values()), strict=True))


@pytest.mark.parametrize("name", [*CASES, BF16])
def test_served_equals_edited_by_hand_and_swaps_lead_there_and_back(
    answers: Callable[[str], Answers], name: str
) -> None:
    if "ranks" in name:
        skip_without_op(SHARED_MEMORY)
    found = answers(name)
    assert found["patched"]["logprobs"] != found["base"]["logprobs"]
    assert same(found["patched"], found["by hand"])
    swapped_in, swapped_out = found["base"]["later"]
    assert same(swapped_in, found["by hand"]), swapped_in["swap"]
    assert same(swapped_out, found["base"]), swapped_out["swap"]
    taken_out, put_back = found["patched"]["later"]
    assert same(taken_out, found["base"]), taken_out["swap"]
    assert same(put_back, found["by hand"]), put_back["swap"]


SLOTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Llama": ("Llama", "neurons", {}),
    "Qwen2-MoE, shared": ("Qwen2Moe", "shared", {}),
    "two ranks": ("Llama", "neurons", {"options": TP, "max_tokens": 5}),
}


@pytest.mark.parametrize("name", SLOTS)
def test_requests_lose_it_in_a_slot_and_others_nothing(name: str, family_model: Callable[[str], Path]) -> None:
    if "ranks" in name:
        skip_without_op(SHARED_MEMORY)
    family, kind, how = SLOTS[name]
    how = {**how, "options": {"dtype": "float32", **how.get("options", {})}}
    patches = {"lost": patch(kind=kind), "other": patch("other", kind, 0.5)}
    found = answer_batch(family_model(family), patches, **how)
    assert same(found["none"], found["plain"])
    for choice in patches:
        assert found[choice]["tokens"] == found[f"weights: {choice}"]["tokens"]
        assert largest_difference(found[choice], found[f"weights: {choice}"]) <= CLOSE
        assert (
            largest_difference(found[choice], found["none"]) > 10 * CLOSE
            or found[choice]["tokens"] != found["none"]["tokens"]
        )


def test_compiled_slots_refuse_it(family_model: Callable[[str], Path]) -> None:
    options = {"dtype": "float32", "enforce_eager": False}
    model = str(family_model("Llama/two layers"))
    wanted = {"version": 1, "name": "lost", "edits": [project(DIRECTIONS[0], {"0": [1]})]}
    (answer,) = run_arms(Arm(model, [], options=options, settings={"slots": 1}, swaps=[[wanted]], max_tokens=2))
    assert answer["swaps"][0]["error"] == (
        "CannotSwapError: op `project` has no place in compiled code, where every request would pay for it; "
        "start the server with --enforce-eager, or without --patch-slots, so that its weights can take the patch"
    )
