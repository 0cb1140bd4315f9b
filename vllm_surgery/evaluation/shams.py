# SPDX-License-Identifier: Apache-2.0
"""Controls for a patch: the same ops and factors in the same layers, on other units chosen by a seed.

A neuron's stand-in is drawn from those whose column of the down projection has a norm close to its own, since a neuron
that says little can be edited without effect. Experts are drawn from all others of their layer.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from vllm_surgery.errors import UsageError
from vllm_surgery.model.output_norms import output_norms
from vllm_surgery.patch.format import Patch
from vllm_surgery.patch.patch_set import PatchSet, SourcedPatch
from vllm_surgery.patch.units import op_of
from vllm_surgery.planning.check import check_patches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm_surgery.model.checkpoint import ModelFolder
    from vllm_surgery.model.output_norms import Norms
    from vllm_surgery.patch.units import Assignment, Gain, Kind

POOL = 24
"""From so many units for each that is edited and each sham, those closest in norm, one is drawn: few enough that norms
are alike (within some per cent in layers of a thousand neurons), many enough that shams are no series of their own."""


@dataclass(frozen=True)
class Unit:
    """A unit and its gain."""

    kind: Kind
    layer: int
    index: int
    gain: Gain


@dataclass(frozen=True)
class Sham:
    """A patch that does to other units what the true one does to its own.

    Attributes:
        units: what it edits.
        norm_ratio: norm of its neurons' columns of the down projections, relative to the true patch's columns; None
            where they aren't read: for experts and quantised weights.
    """

    patch: Patch
    units: tuple[Unit, ...]
    norm_ratio: float | None


def make_shams(patch: Patch, folder: ModelFolder, count: int, seed: int) -> list[Sham]:
    """`count` shams of `patch`, no two with a unit in common, nor with `patch`. The same seed gives the same.

    Raises:
        SurgeryError: the patch isn't for this model.
        UsageError: it edits too many units of a layer.
    """
    check_patches(PatchSet((SourcedPatch(patch.name, patch),)), folder)
    source = random.Random(seed)  # noqa: S311 - a draw that anybody may repeat
    true = _units_of(patch, folder)
    drawn: list[list[Unit]] = [[] for _ in range(count)]
    places = sorted({(unit.kind, unit.layer) for unit in true})
    norms = {(kind, layer): output_norms(folder, layer) if kind == "neurons" else None for kind, layer in places}
    for place in places:
        here = [unit for unit in true if (unit.kind, unit.layer) == place]
        for number, units in enumerate(_draw(here, norms[place], _width(folder, *place), count, source)):
            drawn[number] += units
    size = partial(_norm, norms)
    return [_sham(patch, units, size(units), size(true), number) for number, units in enumerate(drawn, 1)]


def _units_of(patch: Patch, folder: ModelFolder) -> list[Unit]:
    return [unit for item in patch.assignments() for unit in _units(item, _width(folder, item.kind, item.layer))]


def _units(item: Assignment, width: int) -> list[Unit]:
    return [Unit(item.kind, item.layer, index, item.gain) for index in item.resolve(width)]


def _width(folder: ModelFolder, kind: Kind, layer: int) -> int:
    return folder.anatomy.mlps[layer].width if kind == "neurons" else folder.anatomy.experts[layer].count


def _draw(
    units: Sequence[Unit], norms: Norms | None, width: int, count: int, source: random.Random
) -> list[list[Unit]]:
    """For each sham a stand-in for each unit."""
    free = sorted(set(range(width)) - {unit.index for unit in units})
    if count * len(units) > len(free):
        where = f"layer {units[0].layer}: {len(units)} of {width} {units[0].kind}"
        raise UsageError(f"{where} leave no room for {count} shams")
    shams: list[list[Unit]] = [[] for _ in range(count)]
    for unit in units:
        for sham in shams:
            index = source.choice(_alike(unit, free, norms, POOL))
            free.remove(index)
            sham.append(Unit(unit.kind, unit.layer, index, unit.gain))
    return shams


def _alike(unit: Unit, free: Sequence[int], norms: Norms | None, count: int) -> list[int]:
    if norms is None:
        return list(free)
    sizes = norms
    return sorted(free, key=lambda index: abs(float(sizes[index] - sizes[unit.index])))[:count]


def _sham(patch: Patch, units: list[Unit], norm: float | None, true_norm: float | None, number: int) -> Sham:
    data = {
        "version": 1,
        "name": f"sham-{number}",
        "model": patch.model.given(),
        "edits": [_edit(unit) for unit in units],
    }
    ratio = norm / true_norm if norm is not None and true_norm else None
    return Sham(Patch.from_data(data), tuple(units), ratio)


def _edit(unit: Unit) -> dict[str, Any]:
    return {**op_of(unit.gain), unit.kind: {str(unit.layer): [unit.index]}}


def _norm(norms: dict[tuple[Kind, int], Norms | None], units: Sequence[Unit]) -> float | None:
    squares = 0.0
    for unit in units:
        here = norms[unit.kind, unit.layer]
        if here is None:
            return None
        squares += float(here[unit.index]) ** 2
    return math.sqrt(squares)
