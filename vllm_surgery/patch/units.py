# SPDX-License-Identifier: Apache-2.0
"""Units and the ways a patch names them: single indices, ranges, or a whole layer.

A unit is one MLP neuron (layer, index along the intermediate dimension), one neuron of a layer's shared expert, one
routed expert (layer, index), or one neuron inside a routed expert (layer, expert, index). Selections stay ranges until
a model says how wide its layers are, so that a hostile ``0-999999`` costs nothing.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from vllm_surgery.patch.direction import Projection

Kind: TypeAlias = Literal["neurons", "shared", "experts", "expert_neurons"]
KINDS: tuple[Kind, ...] = ("neurons", "shared", "experts", "expert_neurons")
NEURON_KINDS: tuple[Kind, ...] = ("neurons", "shared")
"""The kinds whose units are neurons of one gated MLP a layer: its own, or the expert that all its tokens share."""
INSIDE: Literal["expert_neurons"] = "expert_neurons"
"""The kind of neurons inside routed experts, of which a layer has as many gated MLPs as experts."""

# Bounds of the format, far above any model known: the widest MLP today has about 57,000 neurons.
MAX_LAYER = 9_999
MAX_INDEX = (1 << 20) - 1

_CANONICAL_NUMBER = r"(?:0|[1-9][0-9]*)"
RANGE_PATTERN = rf"{_CANONICAL_NUMBER}-{_CANONICAL_NUMBER}"
LAYER_PATTERN = r"(?:0|[1-9][0-9]{0,3})"
INDEX_PATTERN = r"(?:0|[1-9][0-9]{0,6})"

MASK: Literal["mask"] = "mask"
Gain: TypeAlias = float | Literal["mask"]
"""The factor of a unit's output, or `MASK` for an expert that the router can't choose."""
Effect: TypeAlias = "Gain | Projection"
"""What becomes of a unit: a factor, a mask, or the loss of a direction of its output."""

ALL: Literal["all"] = "all"


class UnitBlock(NamedTuple):
    """All units of one kind in one layer."""

    kind: Kind
    layer: int

    @property
    def expert(self) -> int | None:
        """None: its units are inside no expert."""
        return None

    @property
    def place(self) -> str:
        """``layer 12``."""
        return f"layer {self.layer}"

    @property
    def words(self) -> str:
        """The word for its units beside the place: ``neurons``, ``shared neurons`` or ``experts``."""
        return units_in_words(self.kind)

    def __str__(self) -> str:
        return "/".join([*path_of(self), ALL])


class ExpertBlock(NamedTuple):
    """All neurons inside one routed expert of one layer."""

    kind: Kind
    layer: int
    expert: int

    @property
    def place(self) -> str:
        """``expert 34 of layer 12``."""
        return f"expert {self.expert} of layer {self.layer}"

    @property
    def words(self) -> str:
        """The word for its units beside the place: ``neurons``."""
        return "neurons"

    def __str__(self) -> str:
        return "/".join([*path_of(self), ALL])


Block: TypeAlias = UnitBlock | ExpertBlock
"""The units among which an index names one."""


def block_of(kind: Kind, layer: int, expert: int | None) -> Block:
    """The block of a unit; `expert` is None but for neurons inside one."""
    return UnitBlock(kind, layer) if expert is None else ExpertBlock(kind, layer, expert)


def path_of(block: Block) -> tuple[str, ...]:
    """The keys under which a patch file has a block's units: kind, layer and, inside one, expert."""
    return block.kind, *map(str, block[1:])


def selecting(block: Block, indices: object) -> dict[str, Any]:
    """A selection of these units of a block, as a patch file has it."""
    kind, *numbers = path_of(block)
    for number in reversed(numbers):
        indices = {number: indices}
    return {kind: indices}


@dataclass(frozen=True, order=True)
class Unit:
    """One MLP neuron or one routed expert.

    Attributes:
        kind: neurons, neurons of shared experts, experts, or neurons inside experts.
        layer: its layer, from 0.
        index: along the MLP's intermediate dimension, or among the layer's routed experts; from 0.
        expert: the routed expert that a neuron is inside of, from 0; None for every other unit.
    """

    kind: Kind
    layer: int
    index: int
    expert: int | None = None

    @classmethod
    def parse(cls, key: str) -> Unit:
        """The unit that ``neurons/29/545`` or ``expert_neurons/12/34/511`` names, as seals write it."""
        word, layer, *experts, index = key.split("/")
        kind = next(kind for kind in KINDS if kind == word)
        return cls(kind, int(layer), int(index), int(experts[0]) if experts else None)

    @property
    def block(self) -> Block:
        """The units of its kind in its layer, or in its expert."""
        return block_of(self.kind, self.layer, self.expert)

    def __str__(self) -> str:
        return "/".join([*path_of(self.block), str(self.index)])


def units_in_words(kind: Kind) -> str:
    """``neurons``, ``shared neurons``, ``experts`` or ``neurons inside experts``."""
    return {"shared": "shared neurons", INSIDE: "neurons inside experts"}.get(kind, kind)


def op_of(gain: Effect, addend: float = 0.0) -> dict[str, Any]:
    """The fields of an effect in a patch file: its op, and the factor, value or direction where the op needs one."""
    if not isinstance(gain, float | int | str):
        return {"op": "project", "strength": gain.strength, "direction": gain.direction.inline}
    if addend:
        return {"op": "add" if gain else "set", "value": addend}
    if gain == MASK:
        return {"op": "mask"}
    if gain in (-1.0, 0.0):
        return {"op": "negate" if gain else "zero"}
    return {"op": "scale", "factor": gain}


@dataclass(frozen=True, order=True)
class IndexRange:
    """The indices from `first` to `last`, both included."""

    first: int
    last: int

    @classmethod
    def parse(cls, value: object) -> IndexRange:
        """An index (``7``) or a range (``"100-199"``) as a patch file writes it.

        Raises:
            ValueError: for anything else, with the reason in one line.
        """
        if isinstance(value, IndexRange):
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return cls._bounded(value, value)
        if isinstance(value, str) and re.fullmatch(RANGE_PATTERN, value) and len(value) <= 2 * len(str(MAX_INDEX)) + 1:
            first, last = value.split("-")
            if int(first) > int(last):
                raise ValueError(f"the range {value} runs backwards")
            return cls._bounded(int(first), int(last))
        if isinstance(value, list) and len(value) == 2 and all(type(end) is int for end in value):  # noqa: PLR2004
            raise ValueError(f'a range is written "{value[0]}-{value[1]}", got {value!r}')
        raise ValueError(f'expected an index such as 7 or a range such as "100-199", got {value!r}')

    @classmethod
    def _bounded(cls, first: int, last: int) -> IndexRange:
        if first < 0:
            raise ValueError(f"index {first} is negative")
        if last > MAX_INDEX:
            raise ValueError(f"index {last} is beyond the largest that a patch may name, {MAX_INDEX}")
        return cls(first, last)

    def __len__(self) -> int:
        return self.last - self.first + 1

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.last + 1))

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"

    def written(self) -> int | str:
        """The form for a patch file: a number, or a string for a range."""
        return self.first if self.first == self.last else str(self)


Indices: TypeAlias = tuple[IndexRange, ...] | Literal["all"]
"""The indices that a patch names in one layer: sorted ranges that don't touch, or the whole layer."""


def merge_ranges(ranges: Iterable[IndexRange]) -> tuple[IndexRange, ...]:
    """Sorts `ranges` and joins those that touch. An index that stands twice is an error.

    Raises:
        ValueError: naming the first index that stands twice.
    """
    merged: list[IndexRange] = []
    for item in sorted(ranges, key=_bounds):
        if merged and item.first <= merged[-1].last:
            raise ValueError(f"index {item.first} is named twice")
        if merged and item.first == merged[-1].last + 1:
            merged[-1] = IndexRange(merged[-1].first, item.last)
        else:
            merged.append(item)
    return tuple(merged)


def _bounds(span: IndexRange) -> tuple[int, int]:
    return span.first, span.last


def covers(ranges: Sequence[IndexRange], index: int) -> bool:
    """True if `index` lies in one of `ranges`, which are sorted and disjoint. Takes time log n."""
    after = bisect_right(ranges, index, key=lambda span: span.first)
    return after > 0 and index <= ranges[after - 1].last


@dataclass(frozen=True)
class Assignment:
    """One gain for some units of one layer, and where in which patch it was said.

    Attributes:
        addend: what is added to the units' activations afterwards. Only slots can: no weight holds a constant.
        projection: which direction their outputs lose; None for none. Then `gain` is 1.
        expert: the routed expert that neurons are inside of; None for every other unit.
    """

    kind: Kind
    layer: int
    indices: Indices
    gain: Gain
    source: str
    place: str
    addend: float = 0.0
    projection: Projection | None = None
    expert: int | None = None

    @property
    def block(self) -> Block:
        """The units among which it names some."""
        return block_of(self.kind, self.layer, self.expert)

    @property
    def effect(self) -> Effect:
        """What becomes of the units, but for the addend."""
        return self.gain if self.projection is None else self.projection

    def resolve(self, width: int) -> Iterator[int]:
        """The indices as numbers, in a layer of `width` units. The caller has checked the range."""
        for item in (IndexRange(0, width - 1),) if self.indices == ALL else self.indices:
            yield from item

    def count(self, width: int) -> int:
        """The number of units it names, in a layer of `width` units."""
        return width if self.indices == ALL else sum(map(len, self.indices))

    def names(self, index: int) -> bool:
        """True if it names the unit `index` of its layer."""
        return self.indices == ALL or covers(self.indices, index)

    @property
    def ranges(self) -> tuple[IndexRange, ...]:
        """The indices as ranges, a whole layer as far as the format reaches."""
        return (IndexRange(0, MAX_INDEX),) if self.indices == ALL else self.indices


@dataclass(frozen=True)
class Clash:
    """A unit that two assignments name, or an expert that one names whole and another a neuron of.

    Attributes:
        index: the unit's; of an expert that is named whole its own.
    """

    index: int
    first: Assignment
    second: Assignment

    def __str__(self) -> str:
        if self.first.kind != self.second.kind:
            return f"expert {self.index} of layer {self.first.layer}, whole and inside"
        block = self.first.block
        return f"{block.words} {self.index} of {block.place}"


def find_clash(assignments: Iterable[Assignment]) -> Clash | None:
    """The first unit that is named twice, or None. Takes time n log n in the number of ranges."""
    spans: list[tuple[Kind, int, int, int, int, int]] = []
    known = list(assignments)
    for number, item in enumerate(known):
        expert = -1 if item.expert is None else item.expert
        spans.extend((item.kind, item.layer, expert, span.first, span.last, number) for span in item.ranges)
    spans.sort()
    for (*place, _, last, number), (*next_place, next_first, _, next_number) in pairwise(spans):
        if place == next_place and next_first <= last:
            early, late = sorted((number, next_number))
            return Clash(next_first, known[early], known[late])
    return _find_whole_and_inside(known)


def _find_whole_and_inside(known: Sequence[Assignment]) -> Clash | None:
    """The first expert of which a neuron is named beside the whole, which would give one weight two gains."""
    layers: dict[int, list[Assignment]] = defaultdict(list)
    for item in known:
        if item.kind == "experts":
            layers[item.layer].append(item)
    whole = {layer: UnitMap(items) for layer, items in layers.items()}
    for item in known:
        if item.expert is None or item.layer not in whole:
            continue
        if (other := whole[item.layer].of(item.expert)) is not None:
            first, second = sorted((item, other), key=known.index)
            return Clash(item.expert, first, second)
    return None


class UnitMap:
    """The assignments of one layer by unit. They name no unit twice.

    Args:
        assignments: of units of one kind in one layer.
    """

    def __init__(self, assignments: Iterable[Assignment]) -> None:
        spans = [(span.first, span.last, item) for item in assignments for span in item.ranges]
        self._spans = sorted(spans, key=lambda span: span[0])
        self._firsts = [first for first, _, _ in self._spans]

    def of(self, index: int) -> Assignment | None:
        """The assignment that names a unit; None where none does. Takes time log n."""
        after = bisect_right(self._firsts, index)
        if after == 0:
            return None
        _, last, item = self._spans[after - 1]
        return item if index <= last else None
