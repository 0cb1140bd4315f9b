# SPDX-License-Identifier: Apache-2.0
"""Patches in other tools' forms, and back again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.examples import patch_data, refusal
from tests.folders import config_of, expert_tensors, write_folder
from vllm_surgery import ImportOptions, MismatchError, Patch, PatchError, UsageError, export_patch, import_patch
from vllm_surgery.imports.ascend import kept_by
from vllm_surgery.imports.convert import ratio_of_ranking
from vllm_surgery.model.checkpoint import ModelFolder

if TYPE_CHECKING:
    from pathlib import Path

EXPERTS = 4
MASKS = {"op": "mask", "experts": {"0": [3], "1": [2]}}
ZEROES = {"op": "zero", "experts": {"0": [3], "1": [2]}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = config_of((6, 6), 8, num_experts=EXPERTS, num_experts_per_tok=2)
    folder = tmp_path_factory.mktemp("hub") / "models--org--moe" / "snapshots" / "abc"
    return write_folder(folder, expert_tensors("own"), config)


def patch(*edits: object, **changes: Any) -> Patch:
    return Patch.from_data(patch_data(*edits, **changes))


def test_masks_are_a_profile_of_version_1(model: Path) -> None:
    assert json.loads(export_patch(patch(MASKS), "profile", model)) == {
        "version": 1,
        "model": "org/moe",
        "model_revision": "abc",
        "pruned_experts": [[0, 3], [1, 2]],
    }


def test_silent_experts_are_a_profile_of_version_2() -> None:
    assert json.loads(export_patch(patch(ZEROES), "profile")) == {
        "version": 2,
        "routing_mode": "post_topk_drop",
        "pruned_experts": [[0, 3], [1, 2]],
    }


def test_a_ranking_lists_all_experts_with_the_masked_ones_last(model: Path) -> None:
    lines = export_patch(patch(MASKS), "ranking", model).splitlines()
    assert [json.loads(line) for line in lines] == [{"0": [0, 1, 2, 3]}, {"1": [0, 1, 3, 2]}]


@pytest.mark.parametrize("total", [4, 8, 60, 64, 128, 160, 256, 384, 512])
def test_the_ratio_of_a_ranking_keeps_as_many_as_the_patch(total: int, tmp_path: Path) -> None:
    folder = write_folder(
        tmp_path / "wide", expert_tensors("own", (0,), total, width=1, hidden=1), config_of((1,), 1, num_experts=total)
    )
    for pruned in {1, 2, total // 3, total // 2, total - 1}:
        masks = patch({"op": "mask", "experts": {"0": [f"0-{pruned - 1}" if pruned > 1 else 0]}})
        assert kept_by(total, ratio_of_ranking(masks, ModelFolder(folder))) == total - pruned


def test_a_drop_map_has_every_layer_of_the_model(model: Path) -> None:
    masks = patch({"op": "mask", "experts": {"1": ["0-1"]}})
    assert json.loads(export_patch(masks, "drop-map", model)) == {"0": [], "1": [0, 1]}
    assert json.loads(export_patch(masks, "drop-map")) == {"1": [0, 1]}


def test_a_list_of_steermoe_has_a_line_for_each_expert() -> None:
    assert export_patch(patch(MASKS), "steermoe") == "0 3 -1\n1 2 -1\n"


def test_all_experts_of_a_layer_are_counted_by_the_model(model: Path) -> None:
    every = patch({"op": "zero", "experts": {"1": "all"}})
    assert json.loads(export_patch(every, "profile", model))["pruned_experts"] == [[1, 0], [1, 1], [1, 2], [1, 3]]


@pytest.mark.parametrize(
    ("form", "edit", "options"),
    [
        ("profile", MASKS, {}),
        ("profile", ZEROES, {}),
        ("ranking", MASKS, {"prune_ratio": 0.25}),
        ("drop-map", MASKS, {}),
        ("steermoe", MASKS, {}),
    ],
)
def test_what_is_exported_is_imported_as_the_same_patch(
    form: str, edit: object, options: dict[str, Any], tmp_path: Path, model: Path
) -> None:
    file = tmp_path / ("out.jsonl" if form == "ranking" else "out.json")
    file.write_text(export_patch(patch(edit), form, model))
    again = import_patch(file, model, name="small", options=ImportOptions(**options))
    assert Patch.from_data({**again.to_data(), "model": {}}).digest == patch(edit).digest


@pytest.mark.parametrize(
    ("form", "edits", "reason"),
    [
        ("profile", [{"op": "zero", "neurons": {"0": [1]}}], "edits[0].neurons.0: edits neurons, and these forms"),
        ("profile", [{"op": "negate", "experts": {"0": [1]}}], "edits[0].experts.0: scales experts by -1; these forms"),
        (
            "profile",
            [{"op": "scale", "factor": 0.5, "experts": {"0": [1]}}],
            "edits[0].experts.0: scales experts by 0.5",
        ),
        (
            "profile",
            [MASKS, {"op": "zero", "experts": {"0": [0]}}],
            "masks some experts and silences others; these forms do the one or the other",
        ),
        ("drop-map", [ZEROES], "silences experts that the router still chooses (`zero`); a drop map takes them out"),
        ("ranking", [ZEROES], "silences experts that the router still chooses (`zero`); a ranking takes them out"),
        ("steermoe", [ZEROES], "silences experts that the router still chooses (`zero`); SteerMoE keeps it from"),
        (
            "ranking",
            [{"op": "mask", "experts": {"1": [2]}}],
            "masks 0 of 4 experts in layer 0 and 1 of 4 in layer 1; a ranking keeps as many in each",
        ),
    ],
)
def test_what_a_form_cant_say_is_refused(form: str, edits: list[Any], reason: str, model: Path) -> None:
    assert refusal(lambda: export_patch(patch(*edits), form, model), PatchError).startswith(f"small: {reason}")


def test_what_needs_the_model_asks_for_it() -> None:
    said = "small: a ranking lists all experts of every layer: give --model"
    assert refusal(lambda: export_patch(patch(MASKS), "ranking"), UsageError) == said
    for selection in ("all", ["0-1000000"]):
        wide = patch({"op": "zero", "experts": {"1": selection}})
        said = "small: edits[0].experts.1: give --model, which says how many experts there are"
        assert refusal(lambda wide=wide: export_patch(wide, "profile"), UsageError) == said  # type: ignore[misc]


def test_a_patch_for_another_model_is_refused(model: Path) -> None:
    other = patch(MASKS, model={"num_hidden_layers": 3})
    assert refusal(lambda: export_patch(other, "profile", model), MismatchError).startswith("small: model.num_hidden")


def test_a_form_that_isnt_known_is_refused() -> None:
    said = "no form is called 'gguf'; there are profile, ranking, drop-map, steermoe"
    assert refusal(lambda: export_patch(patch(MASKS), "gguf"), UsageError) == said
