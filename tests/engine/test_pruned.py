# SPDX-License-Identifier: Apache-2.0
"""The masks that diff finds: the full model served with them answers as the checkpoint that lost the experts does."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.offline import Arm, run_arms
from tests.models import EXPERT_LAYERS, EXPERTS
from tests.offline.test_pruned import pruned
from vllm_surgery import ModelFolder
from vllm_surgery.offline.diff import diff

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.engine

GONE = {layer: (layer, 6) for layer in range(EXPERT_LAYERS)}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory, family_model: Callable[[str], Path]) -> list[dict[str, Any]]:
    """Of the full model with the masks, of the smaller one, and of the full model as it is."""
    model = family_model("Qwen3Moe")
    smaller = pruned(model, tmp_path_factory.mktemp("pruned") / "smaller", GONE)
    config = json.loads((smaller / "config.json").read_text())
    (smaller / "config.json").write_text(json.dumps({**config, "num_local_experts": EXPERTS - 2}))
    patch = diff(ModelFolder(model), ModelFolder(smaller)).patch("tried", ModelFolder(model))
    assert patch is not None
    arms = Arm(str(model), [patch.to_data()]), Arm(str(smaller), []), Arm(str(model), [])
    return run_arms(*arms)


def test_the_full_model_with_the_masks_answers_as_the_smaller_one(answers: list[dict[str, Any]]) -> None:
    tried, smaller, full = answers
    assert tried["tokens"] == smaller["tokens"]
    assert tried["tokens"] != full["tokens"]


def test_it_is_as_sure_of_its_answers(answers: list[dict[str, Any]]) -> None:
    tried, smaller, _ = answers
    told = [[chance for step in answer for _, chance in step] for answer in tried["logprobs"]]
    expected = [[chance for step in answer for _, chance in step] for answer in smaller["logprobs"]]
    for one, other in zip(told, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-4)
