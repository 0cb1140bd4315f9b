# SPDX-License-Identifier: Apache-2.0
"""Controls for a patch: the same ops and factors in the same layers, on other units chosen by a seed.

A neuron's stand-in is drawn from those whose column of the down projection has a norm close to its own, since a neuron
that says little can be edited without effect; of a neuron inside an expert, from those of the same expert. Experts are
drawn from all others of their layer.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from vllm_surgery.errors import UsageError
from vllm_surgery.model.output_norms import output_norms, output_norms_inside
from vllm_surgery.patch.format import Patch
from vllm_surgery.patch.patch_set import PatchSet, SourcedPatch
from vllm_surgery.patch.units import NEURON_KINDS, Unit, op_of, selecting
from vllm_surgery.planning.check import check_patches, units_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from vllm_surgery.model.checkpoint import ModelFolder
    from vllm_surgery.model.output_norms import Norms
    from vllm_surgery.patch.units import Block, Effect

POOL = 24
"""From so many units for each that is edited and each sham, those closest in norm, one is drawn: few enough that norms
are alike (within some per cent in layers of a thousand neurons), many enough that shams are no series of their own."""


@dataclass(frozen=True)
class Sham:
    """A patch that does to other units what the true one does to its own.

    Attributes:
        units: those that it edits, each with its gain.
        norm_ratio: norm of its neurons' columns of the down projections, relative to the true patch's columns; None
            where they aren't read: for experts and quantised weights.
    """

    patch: Patch
    units: dict[Unit, Effect]
    norm_ratio: float | None


def make_shams(patch: Patch, folder: ModelFolder, count: int, seed: int) -> list[Sham]:
    """`count` shams of `patch`, no two with a unit in common, nor with `patch`. The same seed gives the same.

    Raises:
        SurgeryError: the patch isn't for this model.
        UsageError: it edits too many units of a layer.
    """
    check_patches(PatchSet((SourcedPatch(patch.name, patch),)), folder)
    source = random.Random(seed)  # noqa: S311 - a draw that anybody may repeat
    true = {
        Unit(item.kind, item.layer, index, item.expert): item.effect
        for item in patch.assignments()
        for index in item.resolve(units_in(folder, item.block))
    }
    drawn: list[dict[Unit, Effect]] = [{} for _ in range(count)]
    blocks = sorted({unit.block for unit in true})
    norms = {block: _norms_of(folder, block) for block in blocks}
    for block in blocks:
        here = {unit: gain for unit, gain in true.items() if unit.block == block}
        for sham, units in zip(drawn, _draw(here, norms[block], units_in(folder, block), count, source), strict=True):
            sham.update(units)
    size = partial(_norm, norms)
    return [_sham(patch, units, size(units), size(true), number) for number, units in enumerate(drawn, 1)]


def _norms_of(folder: ModelFolder, block: Block) -> Norms | None:
    if block.expert is not None:
        return output_norms_inside(folder, block.layer, block.expert)
    return output_norms(folder, block.layer, block.kind) if block.kind in NEURON_KINDS else None


def _draw(
    units: Mapping[Unit, Effect], norms: Norms | None, width: int, count: int, source: random.Random
) -> list[dict[Unit, Effect]]:
    """For each sham a stand-in for each unit of one block."""
    free = sorted(set(range(width)) - {unit.index for unit in units})
    if count * len(units) > len(free):
        block = next(iter(units)).block
        where = f"{block.place}: {len(units)} of {width} {block.words}"
        raise UsageError(f"{where} leave no room for {count} shams")
    shams: list[dict[Unit, Effect]] = [{} for _ in range(count)]
    for unit, gain in units.items():
        for sham in shams:
            index = source.choice(_alike(unit, free, norms, POOL))
            free.remove(index)
            sham[replace(unit, index=index)] = gain
    return shams


def _alike(unit: Unit, free: Sequence[int], norms: Norms | None, count: int) -> list[int]:
    if norms is None:
        return list(free)
    sizes = norms
    return sorted(free, key=lambda index: abs(float(sizes[index] - sizes[unit.index])))[:count]


def _sham(patch: Patch, units: dict[Unit, Effect], norm: float | None, true_norm: float | None, number: int) -> Sham:
    data = {
        "version": 1,
        "name": f"sham-{number}",
        "model": patch.model.given(),
        "edits": [{**op_of(gain), **selecting(unit.block, [unit.index])} for unit, gain in units.items()],
    }
    ratio = norm / true_norm if norm is not None and true_norm else None
    return Sham(Patch.from_data(data), units, ratio)


def _norm(norms: Mapping[Block, Norms | None], units: Iterable[Unit]) -> float | None:
    squares = 0.0
    for unit in units:
        here = norms[unit.block]
        if here is None:
            return None
        squares += float(here[unit.index]) ** 2
    return math.sqrt(squares)
