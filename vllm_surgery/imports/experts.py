# SPDX-License-Identifier: Apache-2.0
"""Lists of experts, which is what every form comes to, and the checks that they have in common."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Literal, TypeAlias

from vllm_surgery.errors import PatchError, one_line
from vllm_surgery.patch.units import LAYER_PATTERN, MAX_INDEX, MAX_LAYER

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vllm_surgery.patch.document import Plain

ExpertOp: TypeAlias = Literal["mask", "zero"]
"""The op of an imported expert: out of its router's choice, or chosen and silent."""

_MOST_WORDS = 20
_WORD_LIMIT = 200  # Characters of a word that a file says about itself and provenance repeats.


@dataclass(frozen=True)
class ExpertLists:
    """The experts that a file takes out.

    Attributes:
        op: by which op.
        layers: the experts of each layer, sorted; no layer is empty.
        says: what the file says about itself, for provenance: words and numbers.
        notes: what is worth knowing about what became of it.
    """

    op: ExpertOp
    layers: dict[int, tuple[int, ...]]
    says: dict[str, Plain] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Collected:
    """Experts by layer, as they are read one by one.

    Args:
        source: the file, for errors.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._layers: dict[int, set[int]] = defaultdict(set)

    def add(self, layer: object, expert: object, place: str) -> None:
        """Takes an expert in.

        Raises:
            PatchError: layer or expert is no whole number from 0 on, or stands there already.
        """
        layer = checked_number(layer, "layer", self._source, place, MAX_LAYER)
        expert = checked_number(expert, "expert", self._source, place, MAX_INDEX)
        if expert in self._layers[layer]:
            raise PatchError(self._source, place, f"expert {expert} of layer {layer} stands twice")
        self._layers[layer].add(expert)

    def add_layers(self, value: object, place: str = "") -> None:
        """Takes in a mapping of layers to lists of their experts.

        Raises:
            PatchError: it is none.
        """
        for layer, experts in layer_lists(value, self._source, place).items():
            for number, expert in enumerate(experts):
                self.add(layer, expert, f"{below(place, layer)}[{number}]")

    def layers(self) -> dict[int, tuple[int, ...]]:
        """What was read.

        Raises:
            PatchError: nothing was.
        """
        found = {layer: tuple(sorted(experts)) for layer, experts in sorted(self._layers.items()) if experts}
        if not found:
            raise PatchError(self._source, "", "names no experts, so there is nothing to import")
        return found


def checked_number(value: object, word: str, source: str, place: str, most: int) -> int:
    """`value` as a whole number from 0 to `most`.

    Raises:
        PatchError: it is another thing; true and 3.0 are.
    """
    if type(value) is not int:
        raise PatchError(source, place, f"expected {article(word)} number, got {value!r}")
    if not 0 <= value <= most:
        raise PatchError(source, place, f"{word} {value} can't be: expected a number from 0 to {most}")
    return value


def article(word: str) -> str:
    """``an expert``, ``a layer``."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def layer_lists(value: object, source: str, place: str = "") -> dict[int, list[Plain]]:
    """A mapping of layers to lists.

    Raises:
        PatchError: it is none, or a key is no layer.
    """
    if not isinstance(value, dict):
        raise PatchError(source, place, f"expected layers with lists of their experts, got {one_line(repr(value), 80)}")
    found: dict[int, list[Plain]] = {}
    for key, experts in value.items():
        where = below(place, key)
        if not is_layer(key):
            raise PatchError(source, where, f"expected a layer's number from 0 to {MAX_LAYER} as the key, got {key!r}")
        if not isinstance(experts, list):
            raise PatchError(source, where, f"expected a list of experts, got {one_line(repr(experts), 80)}")
        found[int(key)] = experts
    return found


def is_layer(key: object) -> bool:
    """True if a key is a layer's number as JSON writes it."""
    return isinstance(key, str) and re.fullmatch(LAYER_PATTERN, key) is not None


def is_layer_lists(value: object) -> bool:
    """True if a value looks like layers with lists of their experts."""
    return (
        isinstance(value, dict)
        and bool(value)
        and all(is_layer(key) for key in value)
        and all(isinstance(experts, list) for experts in value.values())
    )


def below(place: str, key: object) -> str:
    """The place of a key below a place."""
    return f"{place}.{key}" if place else str(key)


def words_of(value: Mapping[str, Plain], leave_out: Iterable[str]) -> dict[str, Plain]:
    """What a file says about itself: the first of its top-level words and numbers, long ones cut."""
    left_out = set(leave_out)
    told = ((key, item) for key, item in value.items() if key not in left_out and isinstance(item, str | int | float))
    return {
        one_line(key, _WORD_LIMIT): one_line(item, _WORD_LIMIT) if isinstance(item, str) else item
        for key, item in islice(told, _MOST_WORDS)
    }
