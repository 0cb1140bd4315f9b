# SPDX-License-Identifier: Apache-2.0
"""diff on checkpoints that lost experts, as REAP and drop maps leave them: which are gone, and the masks that try it.

The pruning here is the tests' own: experts and their rows of the router are cut out, the others are numbered anew.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engine.reference import CLOSE, chances
from tests.models import EXPERT_FAMILIES, EXPERT_LAYERS, EXPERTS, ROUTER_BIASES
from vllm_surgery import CheckpointError, ModelFolder, Patch, import_patch
from vllm_surgery.cli import main
from vllm_surgery.offline.diff import Diff, diff
from vllm_surgery.patch.patch_set import PatchSet, SourcedPatch
from vllm_surgery.planning.check import check_patches

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    Change = Callable[[dict[str, torch.Tensor]], None]

LAYERS = (1, 2, 3)
GONE = {1: (0, 5), 2: (3, 7), 3: (1, 2)}
_ROUTERS = ("gate.weight", "router.weight", "router.layer.weight", "router.proj.weight", "per_expert_scale")


def pruned(model: Path, folder: Path, gone: Mapping[int, tuple[int, ...]] = GONE, change: Change | None = None) -> Path:
    """A copy of a model without some experts."""
    shutil.copytree(model, folder)
    file = folder / "model.safetensors"
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(file).items():
        for new_name, rest in _without(name, tensor, gone):
            tensors[new_name] = rest.contiguous().clone()
    if change is not None:
        change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def _without(name: str, tensor: torch.Tensor, gone: Mapping[int, tuple[int, ...]]) -> list[tuple[str, torch.Tensor]]:
    parts = name.split(".")
    layer = int(parts[parts.index("layers") + 1]) if "layers" in parts else -1
    if layer not in gone:
        return [(name, tensor)]
    kept = [expert for expert in range(EXPERTS) if expert not in gone[layer]]
    if "experts" in parts and parts[parts.index("experts") + 1].isdigit():
        place = parts.index("experts") + 1
        if int(parts[place]) not in kept:
            return []
        parts[place] = str(kept.index(int(parts[place])))
        return [(".".join(parts), tensor)]
    by_expert = "experts" in parts or name.endswith((*_ROUTERS, *ROUTER_BIASES.values(), "_linear.weight"))
    return [(name, tensor[kept])] if by_expert and "shared" not in name else [(name, tensor)]


def compare(model: Path, edited: Path) -> Diff:
    return diff(ModelFolder(model), ModelFolder(edited))


def masks(patch: Patch | None) -> dict[int, tuple[int, ...]]:
    assert patch is not None
    assert [edit.op for edit in patch.edits] == ["mask"]
    return {item.layer: tuple(item.resolve(EXPERTS)) for item in patch.assignments()}


@pytest.mark.parametrize("family", EXPERT_FAMILIES)
def test_the_patch_masks_what_is_gone(family: str, tmp_path: Path, family_model: Callable[[str], Path]) -> None:
    model = family_model(family)
    found = compare(model, pruned(model, tmp_path / "pruned"))
    assert (found.gone, found.unexplained, found.notes) == (GONE, [], [])
    patch = found.patch("tried", ModelFolder(model))
    assert masks(patch) == GONE
    assert patch is not None
    assert check_patches(PatchSet((SourcedPatch("p", patch),)), ModelFolder(model)).units == 6


def test_the_full_model_with_the_masks_answers_as_the_smaller_one(
    tmp_path: Path, family_model: Callable[[str], Path]
) -> None:
    """By transformers, with the masked experts' logits at minus infinity, as an engine serves the patch."""
    model, gone = family_model("Qwen3Moe"), {layer: (layer, 6) for layer in range(EXPERT_LAYERS)}
    smaller = pruned(model, tmp_path / "smaller", gone)
    config = json.loads((smaller / "config.json").read_text())
    (smaller / "config.json").write_text(json.dumps({**config, "num_local_experts": EXPERTS - 2}))
    prompts, answers, masked = [[5, 60, 7], [100, 3]], [[8, 9, 10, 11]] * 2, compare(model, smaller).masks
    tried, served = chances(model, prompts, answers, masked), chances(smaller, prompts, answers)
    full = chances(model, prompts, answers)
    assert max(float((one - other).abs().max()) for one, other in zip(tried, served, strict=True)) < CLOSE
    assert max(float((one - other).abs().max()) for one, other in zip(full, served, strict=True)) > 1000 * CLOSE


def test_a_drop_map_and_the_checkpoint_that_was_cut_by_it_are_one_patch(
    tmp_path: Path, family_model: Callable[[str], Path]
) -> None:
    model = family_model("Qwen3Moe")
    (tmp_path / "map.json").write_text(json.dumps(GONE))
    found = compare(model, pruned(model, tmp_path / "pruned")).patch("map", ModelFolder(model))
    assert found is not None
    assert found.id == import_patch(tmp_path / "map.json", model).id


def test_gains_on_experts_that_are_left_are_found_by_their_old_numbers(
    tmp_path: Path, family_model: Callable[[str], Path]
) -> None:
    """Expert 6 of layer 2 is number 5 after 3 and 7 went."""
    for family, name, index in (
        ("Qwen3Moe", "model.layers.2.mlp.experts.5.down_proj.weight", ...),
        ("Gemma4/experts", "model.layers.2.router.per_expert_scale", 5),
        ("GraniteMoe", "model.layers.2.block_sparse_moe.output_linear.weight", 5),
    ):

        def halve(tensors: dict[str, torch.Tensor], name: str = name, index: object = index) -> None:
            tensors[name][index] *= 0.5  # type: ignore[index]

        model = family_model(family)
        found = compare(model, pruned(model, tmp_path / family, change=halve))
        assert (found.gone, found.experts, found.unexplained) == (GONE, {(2, 6): 0.5}, [])


def test_what_else_changed_is_listed_once_a_tensor(tmp_path: Path, family_model: Callable[[str], Path]) -> None:
    def train(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.mlp.gate.weight"][[0, 3]] += 1.0

    model = family_model("Qwen3Moe")
    found = compare(model, pruned(model, tmp_path / "pruned", change=train))
    assert found.gone == GONE
    assert [(item.tensor, item.reason) for item in found.unexplained] == [
        ("model.layers.1.mlp.gate.weight", "2 row(s) of experts that are left (1, 4) changed")
    ]


def test_trained_experts_are_known_by_their_rows_of_the_router(
    tmp_path: Path, family_model: Callable[[str], Path]
) -> None:
    def train(tensors: dict[str, torch.Tensor]) -> None:
        for part in ("gate", "up", "down"):
            tensors[f"model.layers.1.mlp.experts.0.{part}_proj.weight"] += 1.0

    model = family_model("Qwen3Moe")
    found = compare(model, pruned(model, tmp_path / "pruned", change=train))
    assert found.gone == GONE
    assert {item.tensor for item in found.unexplained} == {
        f"model.layers.1.mlp.experts.0.{part}_proj.weight" for part in ("gate", "up", "down")
    }


def test_merged_experts_are_none_of_the_originals(tmp_path: Path, family_model: Callable[[str], Path]) -> None:
    def merge(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.mlp.gate.weight"][0] += 1.0
        for part in ("gate", "up", "down"):
            tensors[f"model.layers.1.mlp.experts.0.{part}_proj.weight"] += 1.0

    model = family_model("Qwen3Moe")
    found = compare(model, pruned(model, tmp_path / "pruned", change=merge))
    assert found.gone == {layer: GONE[layer] for layer in (2, 3)}
    assert [(item.tensor, item.reason, item.numbers) for item in found.unexplained] == [
        (
            "layer 1",
            "has 6 experts, had 8; its experts 0 are none of those, so it isn't known which are gone",
            1,
        )
    ]


def test_experts_that_are_alike_are_told_by_the_router(tmp_path: Path, family_model: Callable[[str], Path]) -> None:
    def alike(tensors: dict[str, torch.Tensor]) -> None:
        for part in ("gate", "up", "down"):
            names = [f"model.layers.1.mlp.experts.{expert}.{part}_proj.weight" for expert in range(EXPERTS)]
            for name in names:
                tensors[name] = tensors[names[0]].clone()

    base = pruned(family_model("Qwen3Moe"), tmp_path / "base", {}, alike)
    found = compare(base, pruned(base, tmp_path / "pruned"))
    assert (found.gone, found.unexplained) == (GONE, [])


def test_another_number_format_is_seen_through(tmp_path: Path, family_model: Callable[[str], Path]) -> None:
    def in_bf16(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()})

    for family in ("Qwen3Moe", "GptOss"):
        model = family_model(family)
        found = compare(model, pruned(model, tmp_path / family, change=in_bf16))
        assert (found.gone, found.unexplained) == (GONE, [])
        assert len(found.notes) == 1
        assert found.notes[0].endswith("tensor(s) are stored as BF16, were F32; compared as BF16")


def test_experts_may_keep_their_numbers(tmp_path: Path, family_model: Callable[[str], Path]) -> None:
    """Files from which only the tensors were taken, the router as it was."""
    model, folder = family_model("Qwen3Moe"), tmp_path / "pruned"
    shutil.copytree(model, folder)
    tensors = load_file(folder / "model.safetensors")
    left = {name: tensor for name, tensor in tensors.items() if ".layers.2.mlp.experts.3." not in name}
    save_file(left, folder / "model.safetensors", metadata={"format": "pt"})
    found = compare(model, folder)
    assert (found.gone, found.unexplained) == ({2: (3,)}, [])


def test_heads_behind_the_last_layer_lose_experts_that_no_patch_reaches(
    tmp_path: Path, family_model: Callable[[str], Path]
) -> None:
    base = shutil.copytree(family_model("Qwen3Moe"), tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    found = compare(base, pruned(base, tmp_path / "pruned"))
    assert (found.gone, found.unexplained) == ({1: (0, 5), 2: (3, 7)}, [])
    assert found.notes == ["2 experts are gone from layer 3, which no patch reaches"]


def test_more_experts_than_the_original_has_are_no_pruning(tmp_path: Path, family_model: Callable[[str], Path]) -> None:
    model = family_model("Qwen3Moe")
    found = compare(pruned(model, tmp_path / "pruned"), model)
    assert found.gone == {}
    assert found.unexplained


def test_a_cut_file_is_refused(tmp_path: Path, family_model: Callable[[str], Path]) -> None:
    model = family_model("Qwen3Moe")
    folder = pruned(model, tmp_path / "pruned")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError):
        compare(model, folder)


def test_the_command_names_what_is_gone(
    tmp_path: Path, family_model: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = family_model("Qwen3Moe"), tmp_path / "found.yaml"
    edited = pruned(model, tmp_path / "pruned")
    assert main(["diff", str(model), str(edited), "-o", str(out)]) == 0
    printed, err = capsys.readouterr()
    assert "6 masked experts" in printed
    assert err == "note: 6 experts of 3 layers gone, masked by the patch: layer 1: 0, 5; layer 2: 3, 7; layer 3: 1-2\n"
    assert main(["diff", str(model), str(edited), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["gone"] == {"1": [0, 5], "2": [3, 7], "3": [1, 2]}


def test_the_command_says_where_no_router_can_do_without_what_is_gone(
    tmp_path: Path, family_model: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model = family_model("Qwen3Moe")
    edited = pruned(model, tmp_path / "pruned", {1: (0, 1, 2, 3, 4, 5, 6)})
    assert main(["diff", str(model), str(edited)]) == 0
    assert "note: the patch can't be applied to the original: diff: edits[0].experts.1: masks 7 of the 8 experts" in (
        capsys.readouterr().err
    )
