# SPDX-License-Identifier: Apache-2.0
"""A list that is imported, baked and found again by diff is the same patch, where a checkpoint can hold it.

Masks stand in the bias of a router; of families whose routers have none, only a server can mask, and a bake says so.
Experts that are silenced stand in every family's checkpoints.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.examples import refusal
from tests.models import EXPERT_FAMILIES, ROUTER_BIASES
from vllm_surgery import ImportOptions, MismatchError, ModelFolder, apply_to_checkpoint, export_patch, import_patch
from vllm_surgery.offline.diff import diff

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LAYERS, EXPERTS = (1, 2, 3), 8
GONE = {layer: [layer, 5] for layer in LAYERS}
PAIRS = [[layer, expert] for layer, experts in GONE.items() for expert in experts]
LISTS = {
    "profile": json.dumps({"version": 1, "pruned_experts": PAIRS}),
    "drop-map": json.dumps(GONE),
    "steermoe": "".join(f"{layer} {expert} -1\n" for layer, expert in PAIRS),
}
DROPPED = json.dumps({"version": 2, "routing_mode": "post_topk_drop", "pruned_experts": PAIRS})


def found_again(
    file: Path, model: Path, work: Path, form: str | None = None, options: ImportOptions | None = None
) -> None:
    patch = import_patch(file, model, form=form, name="list", options=options)
    baked = apply_to_checkpoint(patch, model, work / "baked")
    found = diff(ModelFolder(model), ModelFolder(baked))
    again = found.patch("list", ModelFolder(model))
    assert found.unexplained == []
    assert again is not None
    assert again.id == patch.id


@pytest.mark.parametrize("form", LISTS)
@pytest.mark.parametrize("family", sorted(ROUTER_BIASES))
def test_masks_are_found_again(form: str, family: str, tmp_path: Path, family_model: Callable[[str], Path]) -> None:
    (tmp_path / "list.json").write_text(LISTS[form])
    found_again(tmp_path / "list.json", family_model(family), tmp_path, form)


def test_a_ranking_is_found_again(tmp_path: Path, family_model: Callable[[str], Path]) -> None:
    ranked = [{str(layer): [e for e in range(EXPERTS) if e not in (0, 5)]} for layer in range(4)]
    (tmp_path / "list.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in ranked))
    found_again(tmp_path / "list.jsonl", family_model("GptOss"), tmp_path, options=ImportOptions(prune_ratio=0.25))


@pytest.mark.parametrize("family", EXPERT_FAMILIES)
def test_silent_experts_are_found_again(family: str, tmp_path: Path, family_model: Callable[[str], Path]) -> None:
    (tmp_path / "list.json").write_text(DROPPED)
    found_again(tmp_path / "list.json", family_model(family), tmp_path)


def test_where_no_checkpoint_can_hold_a_mask_the_bake_says_so(
    tmp_path: Path, family_model: Callable[[str], Path]
) -> None:
    (tmp_path / "list.json").write_text(LISTS["profile"])
    patch, model = import_patch(tmp_path / "list.json", family_model("Qwen3Moe")), family_model("Qwen3Moe")
    said = refusal(lambda: apply_to_checkpoint(patch, model, tmp_path / "baked"), MismatchError)
    assert said.endswith("layer 1's router has no bias, so no checkpoint can hold the mask; serve the patch instead")
    assert json.loads(export_patch(patch, "profile", model))["pruned_experts"] == PAIRS
