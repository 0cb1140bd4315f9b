# SPDX-License-Identifier: Apache-2.0
"""Bakes gains into a checkpoint, and holds every tensor of the result against arithmetic of the tests' own."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch

from tests.docs.families.checkpoints import MXFP4, SHARED, of_mxfp4
from tests.models import patch_of
from tests.planning.test_quantised import changed, rounded_once, sign, with_scales
from tests.quantised import stored
from vllm_surgery import MismatchError, ModelFolder, Patch, PatchSet
from vllm_surgery.offline.bake import bake
from vllm_surgery.patch.patch_set import SourcedPatch
from vllm_surgery.planning.check import check_patches

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.docs.families.checkpoints import Checkpoint
    from tests.quantised import Tensors

    Gains = dict[tuple[int, int], float]

OPS = {"scale": (-0.7, 3.0), "scale by powers of two": (0.5, -2.0), "zero": (0.0,), "negate": (-1.0,)}
"""The ops, and the factors that stand for all of theirs."""
FIRST_NEURON = 8  # The quantisers put codes without an opposite at another one.
MASKED = 7
EXPERT = 1
"""Of which neurons are edited."""
NEURONS_FIRST = {"GptOss", "Llama4", "Qwen3VLMoe"}
"""The families whose experts share a down projection of ``[experts, neurons, hidden]``."""


@dataclass
class Held:
    """What a checkpoint can hold of the units of one kind.

    Attributes:
        ops: those that were carried out exactly.
        refused: the reasons of the others.
    """

    ops: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def held(checkpoint: Checkpoint, kind: str) -> Held:
    """Asks for each op on units of the first and the last layer that have some, and checks what was done.

    Args:
        checkpoint: where.
        kind: of unit.

    Raises:
        AssertionError: a weight isn't its gain times the original, or another byte changed.
    """
    model, found = ModelFolder(checkpoint.folder), Held()
    blocks = {"neurons": model.anatomy.mlps, "shared": model.anatomy.shared}.get(kind)
    layers = sorted(model.anatomy.experts if blocks is None else blocks)
    wanted: Gains = {}
    for op, factors in OPS.items():
        gains = {(layer, _index(kind, factor)): factor for factor in factors for layer in (layers[0], layers[-1])}
        if reason := refusal(_patches(gains, kind), model):
            found.refused[op] = reason
            continue
        found.ops.append(op)
        wanted |= gains
    if wanted:
        _check(checkpoint, kind, wanted)
    if "scale" in found.ops:
        found.ops.remove("scale by powers of two")
    if kind == "experts":
        _mask(checkpoint, model, layers[-1], found)
    return found


def refusal(patches: PatchSet, model: ModelFolder) -> str | None:
    """Why a model can't take patches, without the names of units and layers; None where it can."""
    try:
        check_patches(patches, model)
    except MismatchError as error:
        return re.sub(r"^\S+\.layers\.\S+ ", "", error.detail)
    return None


def _index(kind: str, factor: float) -> int:
    """A unit of its own for each factor."""
    place = [one for factors in OPS.values() for one in factors].index(factor)
    return place + (0 if kind == "experts" else FIRST_NEURON)


def _patches(gains: Gains, kind: str) -> PatchSet:
    data = {"neurons": patch_of(gains), "shared": patch_of({}, shared=gains)}.get(kind) or patch_of({}, experts=gains)
    for edit in data["edits"] if kind == "expert_neurons" else ():
        edit[kind] = {layer: {str(EXPERT): neurons} for layer, neurons in edit.pop("experts").items()}
    return PatchSet((SourcedPatch("p", Patch.from_data(data)),))


@dataclass(frozen=True)
class _Baked:
    """A checkpoint's tensors before and after a bake."""

    checkpoint: Checkpoint
    before: Tensors
    after: Tensors

    def parts(self, layer: int, expert: int | None, part_name: str) -> tuple[Tensors, Tensors]:
        """A projection's tensors, by the ends of their names, before and after."""
        old, new = (self.checkpoint.parts(tensors, layer, expert, part_name) for tensors in (self.before, self.after))
        return old, new


def _baked(checkpoint: Checkpoint, patches: PatchSet, name: str) -> _Baked:
    out = checkpoint.folder.with_name(f"{checkpoint.folder.name}-{name}")
    bake(patches, ModelFolder(checkpoint.folder), out)
    return _Baked(checkpoint, stored(checkpoint.folder), stored(out))


def _check(checkpoint: Checkpoint, kind: str, gains: Gains) -> None:
    baked = _baked(checkpoint, _patches(gains, kind), kind)
    touched = dict(changed(baked.before, baked.after))
    if kind == "expert_neurons" and not checkpoint.own_experts():
        _check_inside_shared(baked, gains, touched)
        return
    owner = {"shared": SHARED, "expert_neurons": EXPERT}.get(kind)
    check = _check_expert if kind == "experts" else partial(_check_neuron, owner)
    for (layer, index), gain in gains.items():
        for name, axis, place in check(baked, layer, index, gain):
            if name in touched:
                part = touched[name] if axis is None else touched[name].select(axis, place)
                part.zero_()
    assert not [name for name, different in touched.items() if different.any()], "bytes of other units changed"


Places = list[tuple[str, int | None, int]]
"""Slices that a unit's gain may change: a tensor's name, an axis, an index along it."""


def _check_neuron(owner: int | None, baked: _Baked, layer: int, neuron: int, gain: float) -> Places:
    kind, starts = baked.checkpoint.kind, baked.checkpoint.starts
    part_name = "up" if (layer, owner, "up") in starts else "gate_up"
    down = f"{starts[layer, owner, 'down']}weight"
    (old_down, new_down), (old_up, new_up) = (baked.parts(layer, owner, each) for each in ("down", part_name))
    if kind is None:
        assert torch.equal(new_down["weight"][:, neuron], rounded_once(old_down["weight"][:, neuron], gain))
        return [(down, 1, neuron)]
    row = neuron + (kind.dequantise(old_up).shape[0] // 2 if part_name == "gate_up" else 0)
    scaled = kind.dequantise(old_up) if kind.out_axis is None else with_scales(kind, old_up, gain)
    expected = torch.outer(kind.dequantise(old_down)[:, neuron], scaled[row]) * sign(gain)
    made = torch.outer(kind.dequantise(new_down)[:, neuron], kind.dequantise(new_up)[row])
    assert torch.equal(made, expected)
    scales = [] if kind.out_axis is None else [(f"{starts[layer, owner, part_name]}{kind.scale}", kind.out_axis, row)]
    return [(down, 1, neuron), *scales]


def _check_expert(baked: _Baked, layer: int, expert: int, gain: float) -> Places:
    checkpoint = baked.checkpoint
    if not checkpoint.own_experts():
        return _check_shared(baked, layer, expert, gain)
    old, new = baked.parts(layer, expert, "down")
    if checkpoint.kind is None:
        assert torch.equal(new["weight"], rounded_once(old["weight"], gain))
    else:
        expected = with_scales(checkpoint.kind, old, gain) * sign(gain)
        assert torch.equal(checkpoint.kind.dequantise(new), expected)
    return [(checkpoint.starts[layer, expert, "down"] + end, None, 0) for end in old]


def _check_shared(baked: _Baked, layer: int, expert: int, gain: float) -> Places:
    names = _shared(baked.before, layer)
    places: Places = [(name, 0, expert) for name in names.values()]
    if baked.checkpoint.word == MXFP4:
        codes, exponents = names.pop("down_proj_blocks"), names.pop("down_proj_scales")
        old, new = (of_mxfp4(side[codes][expert], side[exponents][expert]) for side in (baked.before, baked.after))
        assert torch.equal(new, old * gain)
    for name in names.values():
        assert torch.equal(baked.after[name][expert], rounded_once(baked.before[name][expert], gain))
    return places


def _check_inside_shared(baked: _Baked, gains: Gains, touched: Tensors) -> None:
    """Neurons of one expert, in a tensor that all experts of a layer share."""
    config = json.loads((baked.checkpoint.folder / "config.json").read_text())
    first = any(config["architectures"][0].startswith(family) for family in NEURONS_FIRST)
    ends = ("experts.down_proj", "block_sparse_moe.output_linear.weight")
    for layer in {layer for layer, _ in gains}:
        (name,) = [name for name in baked.before if f".layers.{layer}." in name and name.endswith(ends)]
        expected = baked.before[name].clone()
        for (_, neuron), gain in ((unit, gain) for unit, gain in gains.items() if unit[0] == layer):
            written = expected[EXPERT].select(0 if first else 1, neuron)
            written.copy_(rounded_once(written, gain))
        assert torch.equal(baked.after[name], expected)
        del touched[name]
    assert not touched, "other tensors changed"


def _shared(tensors: Mapping[str, torch.Tensor], layer: int) -> dict[str, str]:
    """Of the tensors that all experts of a layer share those that a gain goes on, by the last part of their names."""
    inside = [name for name in tensors if f".layers.{layer}." in name]
    if granite := [name for name in inside if name.endswith("output_linear.weight")]:
        return {"output_linear": granite[0]}
    names = {name.rpartition(".")[2]: name for name in inside if "expert" in name and "shared_expert" not in name}
    chosen = ["per_expert_scale"] if "per_expert_scale" in names else [end for end in names if "down_proj" in end]
    return {end: names[end] for end in chosen}


def _mask(checkpoint: Checkpoint, model: ModelFolder, layer: int, found: Held) -> None:
    """Masks one expert, in the checkpoint where its router has a bias."""
    edit = {"op": "mask", "experts": {str(layer): [MASKED]}}
    patches = PatchSet((SourcedPatch("p", Patch.from_data({"version": 1, "name": "mask", "edits": [edit]})),))
    if reason := refusal(patches, model):
        found.refused["mask"] = reason
        return
    found.ops.append("mask")
    if check_patches(patches, model).engine_masks():
        return
    baked = _baked(checkpoint, patches, "masked")
    ((name, different),) = changed(baked.before, baked.after)
    assert name.endswith("bias")
    assert different.nonzero().tolist() == [[MASKED]]
    assert baked.after[name].isfinite().all()
    assert baked.after[name][MASKED] <= torch.finfo(torch.float16).min
