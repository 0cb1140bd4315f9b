# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file

from tests.benchmarks.int8_copy import copy_model, copy_patch, nearest_codes
from tests.conftest import PATCHES
from vllm_surgery.patch.files import load_patch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_codes_stand_for_the_weights_up_to_half_a_step() -> None:
    weight = torch.randn(7, 12, generator=torch.Generator().manual_seed(1))
    weight[3] = 0
    codes, scales = nearest_codes(weight).values()
    assert codes.dtype == torch.int8
    assert ((codes * scales - weight).abs() <= scales / 2 * 1.0001).all()
    assert (codes.abs().amax(1) == torch.tensor([127, 127, 127, 0, 127, 127, 127])).all()


def test_projections_alone_are_quantised(tmp_path: Path, family_model: Callable[[str], Path]) -> None:
    model = family_model("Llama")
    copy_model(model, tmp_path / "copy")
    before, after = (load_file(folder / "model.safetensors") for folder in (model, tmp_path / "copy"))
    assert before.keys() <= after.keys()
    for name, tensor in before.items():
        quantised = name.endswith("_proj.weight")
        assert (after[name].dtype == torch.int8) == quantised
        assert quantised or after[name].equal(tensor)
        assert (f"{name}_scale" in after) == quantised
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"


def test_the_patch_is_the_same_without_its_seal(tmp_path: Path) -> None:
    sealed = PATCHES / "smollm2-135m-instruct-noloop.yaml"
    copy_patch(sealed, tmp_path / "patch.yaml")
    original, copied = load_patch(str(sealed)), load_patch(str(tmp_path / "patch.yaml"))
    assert original.seal
    assert (copied.seal, copied.name, copied.edits) == ({}, original.name, original.edits)
