# SPDX-License-Identifier: Apache-2.0
"""Text to plain data: JSON, or the part of YAML that says no more than JSON can.

What comes out is what `json.loads` could have made: dicts with string keys, lists, strings, numbers, booleans, None.
What goes in is not trusted: no tags, no anchors or aliases, no duplicate keys, bounded size and depth, and nothing is
ever constructed but plain data. Scalars follow the YAML 1.2 core schema, so ``yes`` is a word and ``017`` no octal.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import yaml

from vllm_surgery.errors import PatchError, is_text, one_line
from vllm_surgery.regular_files import IS_LFS_POINTER, LFS_POINTER

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Plain: TypeAlias = "dict[str, Plain] | list[Plain] | str | int | float | bool | None"

MAX_BYTES = 1 << 20
# Deepest nesting accepted. A patch needs five; `provenance` is free, and 32 leaves it room without letting a hostile
# file reach the recursion limits of the code behind us.
MAX_DEPTH = 32
# Longest number accepted, in characters: no factor or index needs more, and Python's own conversion is quadratic.
MAX_NUMBER_LENGTH = 64

# Whole numbers that every reader of ours can hold: processes speak MessagePack, which has 64 bits.
_SMALLEST, _LARGEST = -(1 << 63), (1 << 63) - 1

# Longest key spelled out in a place: every item below a key carries it along.
_WORD_IN_PLACE = 60
_TOO_DEEP = f"is nested deeper than {MAX_DEPTH} levels"

_INTEGER = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_ZERO = re.compile(r"[-+.0]*[1-9]")
_INDEX_KEY = re.compile(r"0|[1-9][0-9]{0,8}")
_SPECIAL = {"null": None, "~": None, "": None, "true": True, "false": False}
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")

# libyaml where PyYAML was built with it (every wheel is): about ten times faster than the pure Python scanner.
_EventLoader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


def parse_document(content: bytes, source: str) -> Plain:
    """Parses JSON or YAML.

    Args:
        content: the bytes of the file, UTF-8.
        source: what to call it in errors.

    Raises:
        PatchError: for anything that is not plain data, with the line and column where there are any.
    """
    if len(content) > MAX_BYTES:
        raise PatchError(source, "", f"is too long: a patch file may have at most {MAX_BYTES} bytes (1 MiB)")
    if content.startswith(LFS_POINTER):
        raise PatchError(source, "", f"is no patch: {IS_LFS_POINTER}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PatchError(source, f"byte {error.start}", "is not UTF-8 text") from None
    return plain_data(_parse(text, source), source)


def parse_json(text: str, source: str) -> Plain:
    """Parses JSON alone, under the same rules: no duplicate keys, bounded depth, numbers that every reader can hold.

    Args:
        text: of bounded length; nothing here looks at it.
        source: what to call it in errors.

    Raises:
        PatchError: it isn't JSON, with line and column, or no plain data, with the place.
    """
    try:
        return plain_data(_parse_json(text, source), source)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise PatchError(source, place, f"is not JSON: {error.msg}") from None


def _parse(text: str, source: str) -> object:
    if text.lstrip()[:1] == "{":
        try:
            return _parse_json(text, source)
        except json.JSONDecodeError:
            pass  # A YAML flow mapping starts with a brace too, and YAML's message names line and column.
    return _parse_yaml(text, source)


class _Members(list[tuple[str, object]]):
    """A JSON object as its keys and values: a key may stand twice. `plain_data` refuses that, since it knows where."""


class _Number(str):
    """A JSON number that isn't read yet."""

    __slots__ = ()


def _parse_json(text: str, source: str) -> object:
    """JSON whose objects and numbers are left for `plain_data` to read."""
    try:
        return json.loads(
            text, object_pairs_hook=_Members, parse_int=_Number, parse_float=_Number, parse_constant=_Number
        )
    except RecursionError:
        raise PatchError(source, "", _TOO_DEEP) from None


def plain_data(value: object, source: str, place: str = "", depth: int = 0) -> Plain:
    """A copy of `value` that is plain data for sure: finite numbers, text that UTF-8 can say, bounded depth.

    Args:
        value: what `json.loads` gave, or like it. Whole numbers as keys, which YAML's own readers give, become text.
        source: what to call it in errors.
        place: of `value` in the source, such as ``edits[0].neurons``.
        depth: of the containers around it.

    Raises:
        PatchError: with the place of what isn't plain data.
    """
    if not isinstance(value, dict | list | tuple):
        return _leaf(value, source, place)
    if depth >= MAX_DEPTH:
        raise PatchError(source, place, _TOO_DEEP)
    if isinstance(value, dict | _Members):
        return _mapping(value.items() if isinstance(value, dict) else value, source, place, depth)
    return [plain_data(item, source, f"{place}[{number}]", depth + 1) for number, item in enumerate(value)]


def _leaf(value: object, source: str, place: str) -> Plain:
    if isinstance(value, _Number):
        return _number(value, source, place)
    if isinstance(value, str):
        return _sayable(value, source, place)
    if isinstance(value, float):
        return _finite(value, value, source, place)
    if isinstance(value, int) and not isinstance(value, bool):
        return _bounded(value, source, place)
    if value is None or isinstance(value, bool):
        return value
    raise PatchError(source, place, f"a {type(value).__name__} is no plain data")


def _mapping(members: Iterable[tuple[object, object]], source: str, place: str, depth: int) -> dict[str, Plain]:
    mapping: dict[str, Plain] = {}
    for key, value in members:
        if not isinstance(key, str | int) or isinstance(key, bool):
            raise PatchError(source, place, f"a key must be a word or a number, got {key!r}")
        word = _sayable(str(key), source, place)
        below = f"{place}{'.' * bool(place)}{one_line(word, _WORD_IN_PLACE)}"
        if word in mapping:
            raise PatchError(source, below, f"the key {word!r} stands twice in one mapping")
        mapping[word] = plain_data(value, source, below, depth + 1)
    return mapping


def _sayable(text: str, source: str, place: str) -> str:
    if not is_text(text):
        raise PatchError(source, place, "holds half of a surrogate pair, which is no text")
    return text


def _number(word: str, source: str, place: str) -> int | float:
    if len(word) > MAX_NUMBER_LENGTH:
        raise PatchError(source, place, f"a number of {len(word)} characters; at most {MAX_NUMBER_LENGTH} are read")
    if _INTEGER.fullmatch(word):
        return _bounded(int(word), source, place)
    number = _finite(float(word), word, source, place)
    if number == 0 and _NOT_ZERO.match(word):
        raise PatchError(source, place, f"{word} is smaller than any number that can be held, and not 0")
    return number


def _bounded(number: int, source: str, place: str) -> int:
    if not _SMALLEST <= number <= _LARGEST:
        raise PatchError(source, place, "a whole number beyond 64 bits; with a decimal point it is read as a fraction")
    return number


def _finite(number: float, word: object, source: str, place: str) -> float:
    if not math.isfinite(number):
        raise PatchError(source, place, f"{word} is not a finite number")
    return number


@dataclass
class _Container:
    """A mapping or list that is being read. `key` is the mapping's key that waits for its value."""

    data: dict[str, Plain] | list[Plain]
    key: str | None = field(default=None)

    @property
    def wants_key(self) -> bool:
        return isinstance(self.data, dict) and self.key is None

    def add(self, value: Plain) -> None:
        if isinstance(self.data, list):
            self.data.append(value)
        elif self.key is not None:
            self.data[self.key] = value
            self.key = None


def _parse_yaml(text: str, source: str) -> Plain:
    """Builds plain data from YAML's event stream: no recursion, and no constructor that a tag could choose."""
    stack: list[_Container] = []
    root = _Container([])
    documents = 0
    for event in _events(text, source):
        place = _place(event.start_mark)
        current = stack[-1] if stack else root
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise PatchError(source, place, "a patch file holds one YAML document, a second starts here")
        elif isinstance(event, yaml.AliasEvent):
            raise PatchError(source, place, f"YAML aliases are not allowed (*{event.anchor})")
        elif isinstance(event, yaml.NodeEvent):
            _check_undecorated(event, source, place)
            if isinstance(event, yaml.ScalarEvent):
                _add_scalar(current, event, source, place)
                continue
            if current.wants_key:
                raise PatchError(source, place, "a key must be a plain word or number")
            if len(stack) >= MAX_DEPTH:
                raise PatchError(source, place, _TOO_DEEP)
            container = _Container({} if isinstance(event, yaml.MappingStartEvent) else [])
            current.add(container.data)
            stack.append(container)
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            stack.pop()
    assert isinstance(root.data, list)
    return root.data[0] if root.data else None


def _place(mark: Any) -> str:
    """Line and column of a mark of PyYAML's, whose two implementations share no type."""
    return f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""


def _events(text: str, source: str) -> Iterator[yaml.Event]:
    try:
        yield from yaml.parse(text, Loader=_EventLoader)
    except yaml.MarkedYAMLError as error:
        place = _place(error.problem_mark or error.context_mark)
        raise PatchError(source, place, f"is not YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # The last two are what PyYAML's own scanner says, where libyaml is missing, to an escape beyond Unicode.
        raise PatchError(source, "", f"is not YAML: {error}") from None


def _check_undecorated(event: yaml.NodeEvent, source: str, place: str) -> None:
    if event.anchor is not None:
        raise PatchError(source, place, f"YAML anchors are not allowed (&{event.anchor})")
    if (tag := getattr(event, "tag", None)) is not None:
        raise PatchError(source, place, f"YAML tags are not allowed ({tag})")


def _add_scalar(container: _Container, event: yaml.ScalarEvent, source: str, place: str) -> None:
    if not container.wants_key:
        container.add(_scalar(event, source, place))
        return
    assert isinstance(container.data, dict)
    if event.value in container.data:
        raise PatchError(source, place, f"the key {event.value!r} stands twice in one mapping")
    container.key = event.value


def _scalar(event: yaml.ScalarEvent, source: str, place: str) -> Plain:
    """A plain (unquoted) scalar by the YAML 1.2 core schema; a quoted one is always a string."""
    word: str = event.value
    if not event.implicit[0]:
        return word
    if word.lower() in _SPECIAL and word in {word.lower(), word.capitalize(), word.upper()}:
        return _SPECIAL[word.lower()]
    if _FLOAT.fullmatch(word):
        return _number(word, source, place)
    if _NOT_FINITE.fullmatch(word):
        raise PatchError(source, place, f"{word} is not a finite number")
    return word


class _Dumper(yaml.SafeDumper):
    """Quotes every string that `parse_document` would otherwise read as something else; indices stand in one line."""

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        flat = not any(isinstance(item, dict | list) for item in sequence)
        return super().represent_sequence(tag, sequence, flow_style=flat)


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(rf"(?:{_FLOAT.pattern})\Z"), list("-+.0123456789"))


def dump_yaml(data: Plain) -> str:
    """Plain data as YAML text that `parse_document` reads back to the same data."""
    text: str = yaml.dump(
        _with_number_keys(data),
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=False,
        width=120,
        default_flow_style=False,
    )
    return text


def _with_number_keys(data: Plain) -> object:
    """`data` with keys such as ``"29"`` as numbers, so that they are written without quotes."""
    if isinstance(data, list):
        return [_with_number_keys(item) for item in data]
    if isinstance(data, dict):
        return {int(key) if _INDEX_KEY.fullmatch(key) else key: _with_number_keys(item) for key, item in data.items()}
    return data
