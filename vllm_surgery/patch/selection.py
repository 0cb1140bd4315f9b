# SPDX-License-Identifier: Apache-2.0
"""Unit selections of a patch file: ``{29: [545, "600-610"], 12: all}``, a layer each with its indices.

Of neurons inside experts ``{12: {34: [511]}}``, a layer each with its experts, and an expert each with its indices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema
from pydantic_core import PydanticCustomError

from vllm_surgery.patch.units import (
    ALL,
    LAYER_PATTERN,
    MAX_INDEX,
    MAX_LAYER,
    RANGE_PATTERN,
    IndexRange,
    Indices,
    merge_ranges,
)

if TYPE_CHECKING:
    from collections.abc import Callable

_Values = TypeVar("_Values")

_INDICES: dict[str, Any] = {
    "anyOf": [
        {"const": ALL},
        {
            "type": "array",
            "minItems": 1,
            "items": {
                "anyOf": [
                    {"type": "integer", "minimum": 0, "maximum": MAX_INDEX},
                    {"type": "string", "pattern": f"^{RANGE_PATTERN}$"},
                ]
            },
        },
    ]
}


def _numbered(values: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The schema of a mapping from numbers, of layers or of experts, to `values`."""
    shape = {"type": "object", "minProperties": 1, "additionalProperties": False}
    return {**shape, **more, "patternProperties": {f"^{LAYER_PATTERN}$": values}}


_SCHEMA = _numbered(
    _INDICES, description='layer -> indices: numbers, ranges such as "100-199", or "all" for every unit of the layer'
)
_INSIDE_SCHEMA = _numbered(
    _numbered(_INDICES),
    description='layer -> expert -> indices of its neurons: numbers, ranges such as "100-199", or "all" for every one',
)


def parse_selection(value: object) -> dict[int, Indices]:
    """Reads a selection, sorted and merged, so that two spellings of the same units compare equal.

    Raises:
        PydanticCustomError: with the place below the selection in its context.
    """
    return _parse_numbered(value, _LAYERS, "", _parse_indices)


def parse_inside(value: object) -> dict[int, dict[int, Indices]]:
    """Reads a selection of neurons inside experts, sorted and merged as `parse_selection` does.

    Raises:
        PydanticCustomError: with the place below the selection in its context.
    """
    return _parse_numbered(value, _LAYERS_OF_EXPERTS, "", _parse_experts)


def _parse_experts(place: str, value: object) -> dict[int, Indices]:
    return _parse_numbered(value, _EXPERTS, place, _parse_indices)


class _Numbers(NamedTuple):
    """What the keys of a mapping are, for those who write others."""

    one: str
    expected: str
    least: str


_LAYERS = _Numbers("a layer", "layers with their indices, such as {29: [545]}", "one layer with an index")
_LAYERS_OF_EXPERTS = _Numbers(
    "a layer", "layers with experts and neurons, such as {12: {34: [511]}}", "one layer with an expert and an index"
)
_EXPERTS = _Numbers("an expert", "experts with their neurons, such as {34: [511]}", "one expert with an index")


def _parse_numbered(
    value: object, keys: _Numbers, place: str, parse: Callable[[str, object], _Values]
) -> dict[int, _Values]:
    """A mapping from numbers, sorted by them, with what `parse` makes of each one's place and value."""
    if not isinstance(value, dict):
        raise refusal(place, f"expected {keys.expected}, got {value!r}")
    if not value:
        raise refusal(place, f"names no units; give at least {keys.least}")
    return {
        _parse_number(key, keys.one, place): parse(f"{place}.{key}" if place else str(key), under)
        for key, under in sorted(value.items(), key=_by_number)
    }


def write_selection(selection: dict[int, Indices]) -> dict[str, str | list[int | str]]:
    """The form for a patch file."""
    return {
        str(number): ALL if indices == ALL else [item.written() for item in indices]
        for number, indices in selection.items()
    }


def write_inside(selection: dict[int, dict[int, Indices]]) -> dict[str, dict[str, str | list[int | str]]]:
    """The form of a selection of neurons inside experts for a patch file."""
    return {str(layer): write_selection(experts) for layer, experts in selection.items()}


Selection = Annotated[
    dict[int, Indices], BeforeValidator(parse_selection), PlainSerializer(write_selection), WithJsonSchema(_SCHEMA)
]
InsideSelection = Annotated[
    dict[int, dict[int, Indices]],
    BeforeValidator(parse_inside),
    PlainSerializer(write_inside),
    WithJsonSchema(_INSIDE_SCHEMA),
]


def _by_number(item: tuple[object, object]) -> tuple[int, str]:
    key = str(item[0])
    return (int(key) if key.isascii() and key.isdigit() and len(key) <= len(str(MAX_LAYER)) else -1, key)


def _parse_number(key: object, named: str, place: str) -> int:
    text = str(key)
    number = _by_number((key, None))[0]
    if isinstance(key, bool) or number < 0 or str(number) != text:
        raise refusal(place, f"expected {named} number from 0 to {MAX_LAYER}, got {key!r}")
    return number


def _parse_indices(place: str, value: object) -> Indices:
    if value == ALL:
        return ALL
    if isinstance(value, tuple):  # Read before: a patch that is copied or built in Python.
        value = list(value)
    if not isinstance(value, list):
        raise refusal(place, f'expected a list of indices or the word "all", got {value!r}')
    if not value:
        raise refusal(place, "names no units; give at least one index")
    ranges = []
    for number, item in enumerate(value):
        try:
            ranges.append(IndexRange.parse(item))
        except ValueError as error:
            raise refusal(f"{place}[{number}]", str(error)) from None
    try:
        return merge_ranges(ranges)
    except ValueError as error:
        raise refusal(place, str(error)) from None


def refusal(place: str, reason: str) -> PydanticCustomError:
    """An error of ours inside pydantic's validation. `place` is relative to the value that is validated."""
    return PydanticCustomError("refused", "{reason}", {"place": place, "reason": reason})
