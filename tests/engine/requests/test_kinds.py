# SPDX-License-Identifier: Apache-2.0
"""Swaps of quantised models while they are served: by slots == by weights that were edited when the model was loaded.

The weights of these models can't be swapped at all. That edited weights are those of a checkpoint edited by hand is
tested beside the other kinds, in `tests.engine.test_kinds`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.engine.offline import Arm, run_arms
from tests.engine.test_kinds import MODEL, ONLINE, QUANTISED, _is_served
from tests.engine.test_load import same
from tests.models import WIDTH, make_model, patch_of
from tests.quantised import make_served

if TYPE_CHECKING:
    from pathlib import Path

    Answer = dict[str, Any]

pytestmark = pytest.mark.engine

KINDS = (*QUANTISED, *ONLINE)
SIGNS = {(0, 0): -1.0, (0, 40): 0.0, (1, WIDTH - 1): -1.0, (1, 9): 0.0}
"""What even those can hold in their weights whose projections have one scale each."""
ROUND = {**SIGNS, (0, 1): 0.5, (1, 7): 4.0}
HALVED = patch_of({(0, index): 0.5 for index in range(WIDTH)}, "halved")


def gains_of(word: str) -> dict[tuple[int, int], float]:
    return SIGNS if word in ONLINE or QUANTISED[word].out_axis is None else ROUND


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Answer]]:
    """For each kind that this machine can serve: a server with slots, one with the patch in its weights, and neither."""
    folder, served = tmp_path_factory.mktemp("kinds"), [word for word in KINDS if _is_served(word)]
    arms = [arm for word in served for arm in _arms(folder / word.replace(" ", "-"), word)]
    given = iter(run_arms(*arms))
    return {word: [next(given), next(given), next(given)] for word in served}


@pytest.fixture(params=KINDS)
def word(request: pytest.FixtureRequest, answers: dict[str, list[Answer]]) -> str:
    kind: str = request.param
    if kind not in answers:
        pytest.skip(f"this machine's vLLM has no kernel for {kind}")
    return kind


def _arms(model: Path, word: str) -> list[Arm]:
    if word in QUANTISED:
        make_served(model, QUANTISED[word], MODEL)
    else:
        make_model(model, MODEL, torch.bfloat16)
    how: dict[str, Any] = {"max_tokens": 6, "options": {"quantization": ONLINE[word]} if word in ONLINE else {}}
    patch = patch_of(gains_of(word), "patch")
    return [
        Arm(str(model), [], settings={"slots": 2}, later=[[patch], [HALVED], []], **how),
        Arm(str(model), [patch], **how),
        Arm(str(model), [], **how),
    ]


def test_a_swap_by_a_slot_is_the_patch_in_the_weights(answers: dict[str, list[Answer]], word: str) -> None:
    (patched, _, _), in_weights = answers[word][0]["later"], answers[word][1]
    assert "error" not in patched["swap"]
    assert same(patched, in_weights)


def test_without_a_patch_no_bit_changes(answers: dict[str, list[Answer]], word: str) -> None:
    slots, _, plain = answers[word]
    assert same(slots, plain)
    assert same(slots["later"][-1], plain)


def test_a_slot_holds_what_the_weights_cannot(answers: dict[str, list[Answer]], word: str) -> None:
    patched, halved, _ = answers[word][0]["later"]
    assert "error" not in halved["swap"]
    assert len({str(answer["logprobs"]) for answer in (patched, halved, answers[word][2])}) == 3
