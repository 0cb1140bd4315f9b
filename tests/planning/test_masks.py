# SPDX-License-Identifier: Apache-2.0
"""Masked experts, from patch to plan, and to a checkpoint and back where its routers have biases."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.examples import SOURCE, patches_of, refusal, zero
from tests.folders import LAYOUTS, Tensor, config_of, expert_tensors, random_tensor, write_folder
from tests.models import EXPERT_FAMILIES, ROUTER_BIASES
from tests.models import EXPERTS as MODEL_EXPERTS
from vllm_surgery import MismatchError, ModelFolder, PatchSet, Plan, TensorEdit
from vllm_surgery.cli import main
from vllm_surgery.errors import CheckpointError
from vllm_surgery.model.anatomy import Anatomy
from vllm_surgery.model.config import ModelFacts
from vllm_surgery.model.routers import LOWEST
from vllm_surgery.model.tensor_info import TensorInfo
from vllm_surgery.offline.bake import bake
from vllm_surgery.offline.diff import diff
from vllm_surgery.patch.patch_set import SourcedPatch
from vllm_surgery.planning.limits import why_too_few_left
from vllm_surgery.planning.planner import LayerMask, plan
from vllm_surgery.weights.arithmetic import apply_edit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

EXPERTS = 4
FACTS = ModelFacts(num_hidden_layers=2, num_experts=EXPERTS, experts_per_token=2)
BIASES = {
    "shared with biases": "mlp.router.bias",
    "correction bias": "mlp.gate.e_score_correction_bias",
}
WITHOUT_BIAS = tuple(layout for layout in LAYOUTS if layout not in BIASES)


def tensors(layout: str, dtype: str = "F32") -> dict[str, Tensor]:
    """Two layers of experts, with the biases of their routers."""
    known = expert_tensors("own" if layout == "correction bias" else layout, dtype=dtype)
    if layout == "correction bias":
        known |= {f"model.layers.{layer}.{BIASES[layout]}": random_tensor(dtype, (EXPERTS,), layer) for layer in (0, 1)}
    return known


def infos(layout: str) -> list[TensorInfo]:
    return [tensor.info(name) for name, tensor in tensors(layout).items()]


def mask(experts: dict[str, Any]) -> dict[str, Any]:
    return {"op": "mask", "experts": experts}


def plan_of(layout: str, *edits: object, facts: ModelFacts = FACTS) -> Plan:
    return plan(patches_of(*edits), facts, infos(layout))


def folder_of(path: Path, layout: str, dtype: str = "F32") -> Path:
    config = config_of((6, 6), 8, num_experts=EXPERTS, num_experts_per_tok=2, architectures=["SomeMoeForCausalLM"])
    return write_folder(path, tensors(layout, dtype), config)


# What a plan says


@pytest.mark.parametrize("layout", BIASES)
def test_a_routers_own_bias_holds_its_masks(layout: str) -> None:
    found = plan_of(layout, mask({"1": [0, 2]}))

    name = f"model.layers.1.{BIASES[layout]}"
    assert found.edits == (TensorEdit(name, "F32", (EXPERTS,), 0, (0, 2), ("mask", "mask")),)
    assert found.masks == (LayerMask(1, (0, 2), EXPERTS, name),)
    assert (found.units, found.engine_masks()) == (2, {})


@pytest.mark.parametrize("layout", WITHOUT_BIAS)
def test_without_a_bias_the_engine_masks(layout: str) -> None:
    found = plan_of(layout, mask({"1": [3]}), mask({"1": [0]}))

    assert (found.edits, found.units) == ((), 2)
    assert found.engine_masks() == {1: LayerMask(1, (0, 3), EXPERTS, None)}


@pytest.mark.parametrize("layout", ["own", *BIASES])
def test_masks_stand_beside_gains_of_other_experts(layout: str) -> None:
    found = plan_of(layout, mask({"1": [0]}), zero({"1": [2], "0": [0]}, "experts"))

    assert [m.experts for m in found.masks] == [(0,)]
    assert found.units == 3
    assert {edit.gains for edit in found.edits} - {("mask",)} == {(0.0,)}


@pytest.mark.parametrize("layout", ["scaled", *BIASES])
@given(data=st.data())
def test_the_order_of_tensors_does_not_matter(layout: str, data: st.DataObject) -> None:
    patches = patches_of(mask({"1": [0]}), zero({"1": [2]}, "experts"))

    shuffled = data.draw(st.permutations(infos(layout)))

    assert plan(patches, FACTS, shuffled) == plan(patches, FACTS, infos(layout))


def test_experts_of_a_packed_format_can_be_masked() -> None:
    seen = [TensorInfo("model.layers.0.mlp.gate.weight", "BF16", (EXPERTS, 8))]

    assert plan(patches_of(mask({"0": [3]})), FACTS, seen).engine_masks()[0].experts == (3,)


# What a checkpoint holds


@pytest.mark.parametrize(
    ("dtype", "torch_dtype"), [("F32", torch.float32), ("BF16", torch.bfloat16), ("F16", torch.half)]
)
def test_a_masked_experts_bias_is_the_lowest_number(dtype: str, torch_dtype: torch.dtype) -> None:
    before = torch.tensor([1.0, -2.0, 3.0, 0.5], dtype=torch_dtype)
    after = apply_edit(before, TensorEdit("b", dtype, (4,), 0, (1, 3), ("mask", "mask")))

    assert after[[0, 2]].tolist() == [1.0, 3.0]
    assert after[[1, 3]].tolist() == [LOWEST[dtype]] * 2
    assert bool(after.isfinite().all())
    # Rounded to bfloat16, as an engine may do, it is still a number; and no logit brings it back.
    assert bool((after.to(torch.bfloat16).isfinite()).all())
    assert bool((after.float() + 1000.0 < -60_000).tolist()[1])


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
@pytest.mark.parametrize("layout", BIASES)
def test_diff_of_a_bake_is_the_patch(layout: str, dtype: str, tmp_path: Path) -> None:
    base = ModelFolder(folder_of(tmp_path / "base", layout, dtype))
    patches = patches_of(mask({"0": [1], "1": [0, 3]}), zero({"1": [2]}, "experts"))

    done = bake(patches, base, tmp_path / "baked")
    found = diff(base, ModelFolder(tmp_path / "baked"))

    assert done.units == 4
    assert (found.masks, found.experts, found.unexplained) == ({(0, 1), (1, 0), (1, 3)}, {(1, 2): 0.0}, [])
    again = found.patch("again", base)
    assert again is not None
    assert bake(PatchSet((SourcedPatch("again", again),)), base, tmp_path / "again").tensors == done.tensors
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("baked", "again"))
    assert first == second


@settings(max_examples=20)
@given(
    masked=st.sets(st.tuples(st.sampled_from([0, 1]), st.integers(0, EXPERTS - 1)), min_size=1).filter(
        lambda units: all(sum(layer == at for at, _ in units) <= 2 for layer in (0, 1))
    )
)
def test_a_bake_changes_the_masked_numbers_alone(masked: set[tuple[int, int]]) -> None:
    edits = [mask({str(layer): [index]}) for layer, index in sorted(masked)]
    with tempfile.TemporaryDirectory() as work:
        base = ModelFolder(folder_of(Path(work) / "base", "correction bias"))
        bake(patches_of(*edits), base, Path(work) / "baked")
        before, after = (load_file(folder / "model.safetensors") for folder in (base.path, Path(work) / "baked"))
    changed = {(name, int(index)) for name in before for index in (before[name] != after[name]).nonzero().flatten()}
    assert changed == {(f"model.layers.{layer}.{BIASES['correction bias']}", index) for layer, index in masked}


def test_minus_infinity_is_a_mask_too_and_other_changes_of_a_bias_are_not(tmp_path: Path) -> None:
    base = folder_of(tmp_path / "base", "shared with biases")
    edited = folder_of(tmp_path / "edited", "shared with biases")
    content = load_file(edited / "model.safetensors")
    content["model.layers.0.mlp.router.bias"][2] = -torch.inf
    content["model.layers.1.mlp.router.bias"][:2] = torch.tensor([-torch.inf, -60.0])
    save_file(content, edited / "model.safetensors", metadata={"format": "pt"})

    found = diff(ModelFolder(base), ModelFolder(edited))

    assert found.masks == {(0, 2), (1, 0)}
    (rest,) = found.unexplained
    assert (rest.tensor, rest.numbers) == ("model.layers.1.mlp.router.bias", 1)


def test_a_changed_bias_of_a_multi_token_prediction_head_is_no_mask(tmp_path: Path) -> None:
    base, edited = (folder_of(tmp_path / word, "correction bias") for word in ("base", "edited"))
    for folder in (base, edited):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    content = load_file(edited / "model.safetensors")
    for layer in (0, 1):
        content[f"model.layers.{layer}.{BIASES['correction bias']}"][2] = LOWEST["F32"]
    save_file(content, edited / "model.safetensors", metadata={"format": "pt"})

    found = diff(ModelFolder(base), ModelFolder(edited))

    assert found.masks == {(0, 2)}
    assert [(item.tensor, item.reason, item.numbers) for item in found.unexplained] == [
        (f"model.layers.1.{BIASES['correction bias']}", "holds no unit that a patch can name", 1)
    ]


def test_a_gain_of_a_masked_expert_is_left_out(tmp_path: Path) -> None:
    base = ModelFolder(folder_of(tmp_path / "base", "correction bias"))
    bake(patches_of(zero({"1": [2]}, "experts")), base, tmp_path / "silent")
    bake(patches_of(mask({"1": [2]})), ModelFolder(tmp_path / "silent"), tmp_path / "both")

    found = diff(base, ModelFolder(tmp_path / "both"))

    assert (found.masks, found.experts) == ({(1, 2)}, {})
    assert found.notes == ["expert 2 of layer 1 is masked, so its gain of 0 is left out"]


@pytest.mark.parametrize("family", EXPERT_FAMILIES)
def test_checkpoints_of_every_family_hold_masks_or_say_that_they_cannot(
    family: str, tmp_path: Path, family_model: Callable[[str], Path]
) -> None:
    base, patches = ModelFolder(family_model(family)), patches_of(mask({"1": [0], "3": [5]}))

    found = plan(patches, base.facts, base.tensors)

    assert [layer.experts for layer in found.masks] == [(0,), (5,)]
    if family in ROUTER_BIASES:
        assert [layer.tensor for layer in found.masks] == [f"model.layers.{n}.{ROUTER_BIASES[family]}" for n in (1, 3)]
        bake(patches, base, tmp_path / "baked")
        assert diff(base, ModelFolder(tmp_path / "baked")).masks == {(1, 0), (3, 5)}
    else:
        assert [layer.tensor for layer in found.masks] == [None, None]
        assert "no checkpoint can hold the mask" in refusal(lambda: bake(patches, base, tmp_path / "baked"))


@pytest.mark.parametrize("family", EXPERT_FAMILIES)
def test_as_many_may_be_masked_as_the_router_can_spare(family: str, family_model: Callable[[str], Path]) -> None:
    base, chosen = ModelFolder(family_model(family)), 1 if family == "Llama4" else 2
    spared = patches_of(mask({"1": [f"0-{MODEL_EXPERTS - chosen - 1}"]}))
    too_many = patches_of(mask({"1": [f"0-{MODEL_EXPERTS - chosen}"]}))

    assert plan(spared, base.facts, base.tensors).units == MODEL_EXPERTS - chosen
    assert refusal(lambda: plan(too_many, base.facts, base.tensors)).endswith(f"for the router, which chooses {chosen}")


# Refusals


@pytest.mark.parametrize("layout", WITHOUT_BIAS)
def test_a_bake_without_a_bias_says_what_can(layout: str, tmp_path: Path) -> None:
    base = ModelFolder(folder_of(tmp_path / "base", layout))

    text = refusal(lambda: bake(patches_of(mask({"1": [2]})), base, tmp_path / "out"), MismatchError)

    assert text == (
        f"{SOURCE}: edits[0].experts.1: layer 1's router has no bias, so no checkpoint can hold the mask; "
        "serve the patch instead"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", ["own", *BIASES])
@pytest.mark.parametrize(
    ("experts", "reason"),
    [
        ([4], "index 4 is out of range: layer 1 has 4 experts"),
        (["0-999999"], "index 999999 is out of range: layer 1 has 4 experts"),
        ([0, 1, 3], "masks 3 of the 4 experts of layer 1: too few are left for the router, which chooses 2"),
        ("all", "masks 4 of the 4 experts of layer 1: too few are left for the router, which chooses 2"),
    ],
)
@pytest.mark.parametrize("facts", [FACTS, ModelFacts(experts_per_token=2)], ids=["config says", "tensors say"])
def test_what_a_router_cannot_do_is_refused(layout: str, experts: Any, reason: str, facts: ModelFacts) -> None:
    text = refusal(lambda: plan_of(layout, mask({"1": experts}), facts=facts), MismatchError)

    assert text == f"{SOURCE}: edits[0].experts.1: {reason}"


def test_masks_of_several_edits_are_counted_together() -> None:
    text = refusal(lambda: plan_of("own", mask({"1": [0]}), mask({"1": [1, 2]})), MismatchError)

    assert text.endswith("masks 3 of the 4 experts of layer 1: too few are left for the router, which chooses 2")


@pytest.mark.parametrize(
    "name", ["mlp.moe_statics.e_score_correction_bias", "mlp.e_score_correction_bias", "mlp.expert_bias"]
)
def test_a_router_with_a_bias_of_another_name_is_refused(name: str) -> None:
    bias = TensorInfo(f"model.layers.1.{name}", "F32", (EXPERTS,))
    text = refusal(lambda: plan(patches_of(mask({"1": [0]})), FACTS, [*infos("own"), bias]), MismatchError)

    assert text.endswith(f"experts.1: layer 1's router has a bias on which no mask can be put: {bias.name}")


def test_a_layer_without_a_router_is_refused() -> None:
    text = refusal(lambda: plan(patches_of(mask({"1": [0]})), FACTS, infos("own")[: len(infos("own")) // 2]))

    assert text.endswith("edits[0].experts.1: touches no tensor: layer 1 has no router in a naming that is known")


def test_a_bias_in_a_format_that_is_not_plain_is_refused() -> None:
    seen = [TensorInfo("model.layers.0.mlp.router.bias", "F8_E4M3", (EXPERTS,))]

    text = refusal(lambda: plan(patches_of(mask({"0": [0]})), FACTS, seen))

    assert "model.layers.0.mlp.router.bias is stored as F8_E4M3" in text


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["mlp.router.bias", "mlp.gate.e_score_correction_bias"], "are both the bias of one router"),
        (["mlp.router.bias"], "not the shape of a router's bias: model.layers.0.mlp.router.bias [4, 2]"),
    ],
)
def test_biases_that_cannot_be_are_refused(names: list[str], reason: str) -> None:
    shape = (4,) if len(names) > 1 else (4, 2)
    seen = [TensorInfo(f"model.layers.0.{name}", "F32", shape) for name in names]

    assert reason in refusal(lambda: Anatomy.of(seen), CheckpointError)


GROUPS = ModelFacts(experts_per_token=3, expert_groups=4, groups_per_token=2)


@pytest.mark.parametrize(
    ("masked", "sums_of_two", "reason"),
    [
        ([], True, None),
        ([0, 4, 8, 12], True, None),
        ([0, 1, 2, 3], True, None),
        ([0, 1, 2], True, "one is left in group 0, and the router compares groups by their best two"),
        ([0, 1, 2], False, None),
        (
            [0, 1, 2, 4, 5, 6],
            False,
            "too few may be left in the groups that the router chooses, 2, and it chooses 3 experts",
        ),
        (range(12), False, "too few groups keep any for the router, which chooses 2 groups"),
        (range(14), False, "too few are left for the router, which chooses 3"),
    ],
)
def test_groups_must_keep_enough_to_be_compared_and_chosen(
    masked: Sequence[int], sums_of_two: bool, reason: str | None
) -> None:
    left = [index for index in range(16) if index not in masked]
    assert why_too_few_left(left, 16, GROUPS, sums_of_two=sums_of_two) == reason


# The command line


def test_check_says_what_is_masked_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    patch = tmp_path / "p.yaml"
    patch.write_text("version: 1\nname: p\nedits: [{op: mask, experts: {1: [0, 2]}}]\n")
    outputs = []
    for layout in ("own", "shared with biases"):
        assert main(["check", str(patch), "--model", str(folder_of(tmp_path / layout, layout))]) == 0
        outputs.append(capsys.readouterr().out.splitlines()[2:])
    assert outputs == [
        ["  the router of layer 1, which has no bias, so while serving: experts: 0, 2 masked"],
        ["  model.layers.1.mlp.router.bias F32 [4], experts: 0 masked, 2 masked"],
    ]


def test_diff_says_how_many_are_masked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = folder_of(tmp_path / "base", "shared with biases")
    bake(patches_of(mask({"1": [0, 2]})), ModelFolder(base), tmp_path / "baked")

    assert main(["diff", str(base), str(tmp_path / "baked"), "-o", str(tmp_path / "p.yaml")]) == 0
    assert capsys.readouterr().out.rstrip().endswith(", 2 masked experts")
