# SPDX-License-Identifier: Apache-2.0
"""Candidate edits: a sparse map from units to gains, and the patch that says the same."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from vllm_surgery.patch.format import Patch
from vllm_surgery.patch.units import ALL, MASK, Unit, UnitBlock, op_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from vllm_surgery.patch.units import Gain, Kind

Target: TypeAlias = Unit | UnitBlock
"""A unit, or all units of a block at once."""

AnyTarget = TypeVar("AnyTarget", bound=Target)

NAME = "candidate"
_WHOLE_BLOCK = -1
"""In files, the index of a target that is a whole block."""


@dataclass(frozen=True)
class Candidate:
    """An edit that may be the one.

    Attributes:
        gains: of each unit, in order.
        origin: which part of the search thought of it; no part of what it is.
    """

    gains: tuple[tuple[Target, Gain], ...]
    origin: str

    @classmethod
    def of(cls, gains: Mapping[AnyTarget, Gain], origin: str) -> Candidate:
        """The candidate with these gains, of which there must be one."""
        return cls(tuple(sorted(gains.items(), key=lambda item: _row(item[0]))), origin)

    @cached_property
    def id(self) -> str:
        """The same for the same edits, whoever thought of them."""
        return self.patch(NAME, {}).digest[:12]

    @property
    def units(self) -> int:
        """The number of units it names; a whole block counts as one."""
        return len(self.gains)

    def patch(self, name: str, guard: Mapping[str, Any]) -> Patch:
        """The patch that carries it out."""
        data = {"version": 1, "name": name, "model": dict(guard), "edits": list(_edits(self.gains))}
        return Patch.from_data(data)

    def to_data(self) -> dict[str, Any]:
        """Plain data."""
        gains = [[*_row(target), gain] for target, gain in self.gains]
        return {"id": self.id, "origin": self.origin, "gains": gains}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Candidate:
        """The candidate whose `to_data` this is."""
        gains = tuple((_target(*row), gain) for *row, gain in data["gains"])
        return cls(gains, data["origin"])

    def __str__(self) -> str:
        first = self.gains[:_SHOWN]
        shown = ", ".join(f"{one} x {gain:g}" if gain != MASK else f"{one} masked" for one, gain in first)
        return shown if self.units <= _SHOWN else f"{shown}, ... ({self.units} units)"


_SHOWN = 4


def joined(first: Candidate, second: Candidate, origin: str) -> Candidate | None:
    """Both edits at once; None where they name a unit in common."""
    gains = dict([*first.gains, *second.gains])
    return Candidate.of(gains, origin) if len(gains) == first.units + second.units else None


def without(candidate: Candidate, target: Target, origin: str) -> Candidate:
    """The same without one unit."""
    return Candidate(tuple(item for item in candidate.gains if item[0] != target), origin)


def distinct(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The candidates in their order, each once."""
    found: dict[str, Candidate] = {}
    for candidate in candidates:
        found.setdefault(candidate.id, candidate)
    return list(found.values())


def round_robin(*lists: Sequence[Candidate], count: int) -> list[Candidate]:
    """The first of each list, then the second of each, and so on, each candidate once, `count` of them at most."""
    longest = max(map(len, lists), default=0)
    return distinct(one[place] for place in range(longest) for one in lists if place < len(one))[:count]


def _edits(gains: Iterable[tuple[Target, Gain]]) -> Iterable[dict[str, Any]]:
    """One edit for each kind and gain."""
    found: dict[tuple[Gain, Kind], dict[str, list[int | str] | str]] = defaultdict(dict)
    for target, gain in gains:
        layers = found[gain, target.kind]
        if isinstance(target, UnitBlock):
            layers[str(target.layer)] = ALL
        else:
            indices = layers.setdefault(str(target.layer), [])
            assert isinstance(indices, list)
            indices.append(target.index)
    for (gain, kind), layers in found.items():
        yield {**op_of(gain), kind: layers}


def _row(target: Target) -> tuple[Kind, int, int]:
    return target.kind, target.layer, target.index if isinstance(target, Unit) else _WHOLE_BLOCK


def _target(kind: Kind, layer: int, index: int) -> Target:
    return UnitBlock(kind, layer) if index == _WHOLE_BLOCK else Unit(kind, layer, index)


Values: TypeAlias = NDArray[np.float32]
"""One number a unit of a layer."""
