# SPDX-License-Identifier: Apache-2.0
"""The ways to put a checkpoint's tensors into files: what the offline tools do with each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file

from tests.examples import patches_of, zero
from tests.folders import write_model
from tests.model.test_storage import as_bin
from vllm_surgery import ModelFolder, SurgeryError
from vllm_surgery.offline.bake import bake
from vllm_surgery.offline.diff import diff

if TYPE_CHECKING:
    from pathlib import Path

STORAGE = {
    "safetensors": "one safetensors file",
    "sharded": "several safetensors files with an index",
    "bin": "`pytorch_model.bin`",
}
"""By the names that `tests.engine.test_load` has for them."""
UNIT = (1, 2)


def stored_as(way: str, folder: Path) -> str:
    """What check, bake and diff make of a checkpoint that is stored in one of the ways: exact, or the refusal."""
    layer, index = UNIT
    one = write_model(folder / "one")
    model = one if way == "safetensors" else folder / way
    if way == "sharded":
        write_model(model, shards=3)
    elif way == "bin":
        as_bin(one, model)
    try:
        bake(patches_of(zero({str(layer): [index]})), ModelFolder(model), folder / "baked")
        found = diff(ModelFolder(model), ModelFolder(folder / "baked"))
    except SurgeryError as error:
        return f"refused: {error.reason.removeprefix(f'{model}: ')}"
    expected = load_file(one / "model.safetensors")
    expected[f"model.layers.{layer}.mlp.down_proj.weight"][:, index] *= 0
    made = [tensors for file in (folder / "baked").glob("*.safetensors") for tensors in load_file(file).items()]
    assert dict(made).keys() == expected.keys()
    assert all(torch.equal(expected[name], tensor) for name, tensor in made)
    assert (found.gains, found.unexplained) == ({UNIT: 0.0}, [])
    return "exact"
