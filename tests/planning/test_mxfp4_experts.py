# SPDX-License-Identifier: Apache-2.0
"""GPT-OSS' experts in MXFP4: all of a layer in one tensor, four-bit floats with exponents for scales."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from tests.examples import patches_of, refusal
from tests.planning.test_quantised import changed, patches, sign
from tests.quantised import stored
from vllm_surgery import MismatchError, ModelFolder, SurgeryError
from vllm_surgery.engine.load.weight_stream import SurgicalLoad
from vllm_surgery.offline.bake import bake
from vllm_surgery.offline.diff import diff
from vllm_surgery.planning.check import check_patches
from vllm_surgery.planning.inventory import take_inventory

if TYPE_CHECKING:
    from pathlib import Path

LAYERS, EXPERTS, HIDDEN, WIDTH, EXPERT = 2, 4, 8, 64, 2
# What the sixteen codes stand for, by the OCP Microscaling specification.
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=torch.float64)
SHARED = "model.layers.1.mlp.experts."


@pytest.fixture
def model(tmp_path: Path) -> Path:
    source = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in range(LAYERS):
        for part_name, rows, columns in (("gate_up", 2 * WIDTH, HIDDEN * 4), ("down", HIDDEN, WIDTH)):
            start = f"model.layers.{layer}.mlp.experts.{part_name}_proj"
            shape = (EXPERTS, rows, columns // 32)
            tensors[f"{start}_blocks"] = torch.randint(0, 256, (*shape, 16), generator=source, dtype=torch.uint8)
            tensors[f"{start}_scales"] = torch.randint(100, 140, shape, generator=source, dtype=torch.uint8)
            tensors[f"{start}_bias"] = torch.randn((EXPERTS, rows), generator=source).bfloat16()
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = {
        "num_hidden_layers": LAYERS,
        "num_local_experts": EXPERTS,
        "quantization_config": {"quant_method": "mxfp4"},
    }
    (folder / "config.json").write_text(json.dumps({"architectures": ["GptOssForCausalLM"], **config}))
    return folder


def down(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """The down projections of layer 1, in float64."""
    blocks, scales = tensors[f"{SHARED}down_proj_blocks"].long(), tensors[f"{SHARED}down_proj_scales"]
    codes = torch.stack([blocks & 15, blocks >> 4], -1).flatten(-2)
    return (E2M1[codes] * torch.exp2(scales.double() - 127).unsqueeze(-1)).flatten(-2)


@pytest.mark.parametrize("gain", [-1.0, 0.0, 0.5, -4.0])
def test_an_expert_is_its_gain_times_the_original(tmp_path: Path, model: Path, gain: float) -> None:
    bake(patches(gain, "experts", EXPERT), ModelFolder(model), tmp_path / "out")

    before, after = stored(model), stored(tmp_path / "out")
    for weights in (down, lambda tensors: tensors[f"{SHARED}down_proj_bias"].double()):
        expected = weights(before)
        expected[EXPERT] *= gain
        assert torch.equal(weights(after), expected)


@pytest.mark.parametrize("gain", [-1.0, 0.0, 0.5, -4.0])
def test_nothing_else_changes(tmp_path: Path, model: Path, gain: float) -> None:
    bake(patches(gain, "experts", EXPERT), ModelFolder(model), tmp_path / "out")

    found = dict(changed(stored(model), stored(tmp_path / "out")))

    parts = {"bias", *(["blocks"] if sign(gain) != 1 else []), *(["scales"] if abs(gain) not in {0, 1} else [])}
    assert found.keys() == {f"{SHARED}down_proj_{part}" for part in parts}
    assert all(set(different.nonzero()[:, 0].tolist()) == {EXPERT} for different in found.values())


@pytest.mark.parametrize("gain", [-1.0, 0.0, 0.5, -4.0])
def test_the_difference_to_a_bake_is_the_patch(tmp_path: Path, model: Path, gain: float) -> None:
    bake(patches(gain, "experts", EXPERT), ModelFolder(model), tmp_path / "out")

    found = diff(ModelFolder(model), ModelFolder(tmp_path / "out"))

    assert (found.experts, found.unexplained) == ({(1, EXPERT): gain}, [])


def test_what_is_loaded_is_what_is_baked(tmp_path: Path, model: Path) -> None:
    wanted = patches(-4.0, "experts", EXPERT)
    bake(wanted, ModelFolder(model), tmp_path / "out")

    load = SurgicalLoad(wanted, ModelFolder(model).facts)
    loaded = dict(load.edit_stream(stored(model).items()))

    assert load.finish().units == 1
    assert not list(changed(loaded, stored(tmp_path / "out")))


@pytest.mark.parametrize("factor", [0.7, -3.0, 1.0000001])
def test_factors_that_are_no_powers_of_two_are_refused(tmp_path: Path, model: Path, factor: float) -> None:
    action = lambda: bake(patches(factor, "experts", EXPERT), ModelFolder(model), tmp_path / "out")  # noqa: E731

    assert refusal(action, MismatchError).endswith(
        "down_proj_scales has scales that are powers of two, so it can hold zero, negate and factors such as 0.5 or -2"
        " alone"
    )


@pytest.mark.parametrize("factor", [2.0**124, 2.0**-130])
def test_an_exponent_never_leaves_its_range(tmp_path: Path, model: Path, factor: float) -> None:
    action = lambda: bake(patches(factor, "experts", EXPERT), ModelFolder(model), tmp_path / "out")  # noqa: E731

    assert refusal(action, SurgeryError).endswith("scales that their format can't hold; use a factor nearer to 1")
    assert not (tmp_path / "out").exists()


def test_other_changes_are_told_apart(tmp_path: Path, model: Path) -> None:
    bake(patches(-1.0, "experts", EXPERT), ModelFolder(model), tmp_path / "out")
    tensors = stored(tmp_path / "out")
    tensors[f"{SHARED}down_proj_scales"][0, 0, 0] += 1
    save_file(tensors, tmp_path / "out" / "model.safetensors", {"format": "pt"})

    found = diff(ModelFolder(model), ModelFolder(tmp_path / "out"))

    assert found.experts == {(1, EXPERT): -1.0}
    assert [(item.tensor, item.numbers) for item in found.unexplained] == [(f"{SHARED}down_proj_scales", 1)]


def test_the_inventory_says_which_factors(model: Path) -> None:
    found, inside = take_inventory(ModelFolder(model)).found

    assert (found.kind, found.units, found.ops) == ("experts", EXPERTS, ("scale by powers of two", "zero", "negate"))
    assert (inside.kind, inside.ops) == ("expert_neurons", ())


@pytest.mark.parametrize("gain", [-1.0, 0.0, 0.5])
def test_single_neurons_of_an_expert_are_refused(model: Path, gain: float) -> None:
    (member,) = patches(gain).members
    edits = [{**edit, "expert_neurons": {"1": {"2": edit["neurons"]["1"]}}} for edit in member.patch.to_data()["edits"]]
    for edit in edits:
        del edit["neurons"]
    wanted = patches_of(*edits)
    assert refusal(lambda: check_patches(wanted, ModelFolder(model)), MismatchError) == (
        f"p.yaml: edits[0].expert_neurons.1.2: {SHARED}down_proj_blocks holds all experts' weights as U8, in which no op "
        "on single neurons of one can be held exactly"
    )
