# SPDX-License-Identifier: Apache-2.0
"""The patch file: what it may say, its canonical form, its digest.

The pydantic models here *are* the file format; the JSON Schema in ``patches/schema.json`` is generated from them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from vllm_surgery.errors import PatchError, one_line
from vllm_surgery.patch.bounds import MAX_EDITS, check_size
from vllm_surgery.patch.direction import MAX_NUMBERS, Projection
from vllm_surgery.patch.direction_field import FILES, READER, DirectionField
from vllm_surgery.patch.document import dump_yaml, parse_document, plain_data
from vllm_surgery.patch.selection import InsideSelection, Selection, refusal
from vllm_surgery.patch.units import (
    ALL,
    INSIDE,
    KINDS,
    MASK,
    NEURON_KINDS,
    Assignment,
    Block,
    ExpertBlock,
    Gain,
    IndexRange,
    Unit,
    UnitBlock,
    covers,
    find_clash,
    path_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pydantic_core import ErrorDetails

    from vllm_surgery.patch.direction_field import ReadDirection
    from vllm_surgery.patch.document import Plain
    from vllm_surgery.patch.units import Indices

SEAL_KEY_PATTERN = (
    r"^((neurons|shared|experts)/(0|[1-9][0-9]{0,3})|expert_neurons(/(0|[1-9][0-9]{0,3})){2})/(0|[1-9][0-9]{0,6})$"
)
_HASH_PATTERN = r"^[0-9a-f]{64}$"
_DIGITS_OF_DIGEST_IN_ID = 8

RESERVED_NAME = "none"
"""No patch is called that: it stands for none at all, wherever a patch is named."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _knows_every_key(cls, data: Any) -> Any:
        """Refuses the first unknown key. Pydantic would collect an error for each, and there may be 100,000."""
        for key in data if isinstance(data, dict) else ():
            if key not in cls.model_fields:
                raise refusal(str(key), "is not a key of this format")
        return data


def _in_float32(factor: float) -> float:
    """The factor as the arithmetic will see it, so that the digest names what is really done. -0.0 becomes 0.0."""
    with np.errstate(over="ignore"):
        return float(np.float32(factor)) + 0.0


def _check_factor(factor: float) -> float:
    rounded = _in_float32(factor)
    if not np.isfinite(rounded):
        raise refusal("", f"{factor} is too large for float32")
    if rounded == 1.0:
        raise refusal("", "a factor of 1 changes nothing; leave the edit out")
    if rounded == 0.0 and factor != 0.0:
        raise refusal("", f"{factor} is 0 in float32; write `op: zero`")
    return factor


def _check_value(value: float) -> float:
    rounded = _in_float32(value)
    if not np.isfinite(rounded):
        raise refusal("", f"{value} is too large for float32")
    if rounded == 0.0:
        raise refusal("", f"{value} is 0 in float32; to silence a neuron write `op: zero`, to add nothing leave it out")
    return value


def _check_strength(strength: float) -> float:
    rounded = _in_float32(strength)
    if not np.isfinite(rounded):
        raise refusal("", f"{strength} is too large for float32")
    if rounded == 0.0:
        raise refusal("", "a strength of 0 changes nothing; leave the edit out")
    return strength


def _check_version(version: object) -> object:
    if isinstance(version, bool):
        raise refusal("", f"must be 1, got {version}")
    return version


def _check_name(name: str) -> str:
    if name == RESERVED_NAME:
        raise refusal("", f"`{RESERVED_NAME}` stands for the model without a patch; call the patch something else")
    return name


def _check_seal(seal: object) -> object:
    """Refuses the first wrong line of a seal, where pydantic would collect an error for each."""
    for unit, content in seal.items() if isinstance(seal, dict) else ():
        if not (isinstance(unit, str) and re.fullmatch(SEAL_KEY_PATTERN, unit)):
            raise refusal(str(unit), f"string should match pattern '{SEAL_KEY_PATTERN}', got {unit!r}")
        if not (isinstance(content, str) and re.fullmatch(_HASH_PATTERN, content)):
            raise refusal(unit, f"string should match pattern '{_HASH_PATTERN}', got {content!r}")
    return seal


_Count = Annotated[int, Field(ge=1)]


class Guard(_Strict):
    """The model that a patch is for. Every given field must match; a field that can't be verified is refused."""

    architectures: Annotated[list[str], Field(min_length=1, fail_fast=True)] | None = Field(
        None, description="`architectures` of config.json"
    )
    num_hidden_layers: int | None = Field(None, ge=1)
    hidden_size: int | None = Field(None, ge=1)
    intermediate_size: _Count | Annotated[list[_Count], Field(min_length=1, fail_fast=True)] | None = Field(
        None, description="neurons a layer: one number, or a list with one number a layer"
    )
    num_experts: int | None = Field(None, ge=1, description="routed experts a layer")
    base: str | None = Field(None, description="the model's name on the Hugging Face Hub")
    revision: str | None = Field(None, description="the commit of that model")

    def given(self) -> dict[str, Any]:
        """The fields that are set."""
        return self.model_dump(exclude_none=True)


class _UnitEdit(_Strict):
    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": [kind]} for kind in KINDS]})

    neurons: Selection = Field(default_factory=dict)
    shared: Selection = Field(default_factory=dict)
    experts: Selection = Field(default_factory=dict)
    expert_neurons: InsideSelection = Field(default_factory=dict)

    @model_validator(mode="after")
    def _names_units(self) -> _UnitEdit:
        if not any(getattr(self, kind) for kind in KINDS):
            raise refusal("", "names no units; give `neurons`, `shared`, `experts` or `expert_neurons`")
        return self

    @property
    def gain(self) -> Gain:
        """The factor on the units' outputs."""
        raise NotImplementedError


class Scale(_UnitEdit):
    """Multiplies the units' outputs by `factor`."""

    op: Literal["scale"]
    factor: Annotated[float, AfterValidator(_check_factor)] = Field(
        description="any finite number but 1", json_schema_extra={"not": {"const": 1}}
    )

    @property
    def gain(self) -> Gain:  # noqa: D102 - said once, in the base
        return _in_float32(self.factor)


class Zero(_UnitEdit):
    """Silences the units: a gain of 0."""

    op: Literal["zero"]

    @property
    def gain(self) -> Gain:  # noqa: D102 - said once, in the base
        return 0.0


class Negate(_UnitEdit):
    """Inverts the units' outputs: a gain of -1."""

    op: Literal["negate"]

    @property
    def gain(self) -> Gain:  # noqa: D102 - said once, in the base
        return -1.0


class Mask(_Strict):
    """Experts that the router can't choose; others take their slots and the weights renormalise."""

    op: Literal["mask"]
    experts: Selection

    @model_validator(mode="before")
    @classmethod
    def _no_neurons(cls, data: Any) -> Any:
        for kind in (*NEURON_KINDS, INSIDE) if isinstance(data, dict) else ():
            if kind in data:
                raise refusal(kind, "`mask` is for routed experts; for neurons use `zero`")
        return data

    @property
    def gain(self) -> Gain:
        """The marker in place of a factor."""
        return MASK


class _Constant(_Strict):
    """Ops that put a number where a weight could only put a multiple. Slots alone can."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": [kind]} for kind in NEURON_KINDS]})

    neurons: Selection = Field(default_factory=dict)
    shared: Selection = Field(default_factory=dict)
    value: Annotated[float, AfterValidator(_check_value)] = Field(
        description="any finite number but 0", json_schema_extra={"not": {"const": 0}}
    )

    @model_validator(mode="before")
    @classmethod
    def _no_experts(cls, data: Any) -> Any:
        if isinstance(data, dict) and "experts" in data:
            raise refusal("experts", "`set` and `add` are for neurons' activations; experts have none")
        if isinstance(data, dict) and INSIDE in data:
            raise refusal(INSIDE, "`set` and `add` work in slots alone, which don't reach neurons inside experts")
        return data

    @model_validator(mode="after")
    def _names_neurons(self) -> _Constant:
        if not self.neurons and not self.shared:
            raise refusal("", "names no units; give `neurons` or `shared`")
        return self

    @property
    def addend(self) -> float:
        """The constant added to the neurons' activations."""
        return _in_float32(self.value)


class Set(_Constant):
    """The neurons' activations become `value`, whatever the input. Only for patches in slots."""

    op: Literal["set"]

    @property
    def gain(self) -> Gain:
        """The factor that is left on the activation."""
        return 0.0


class Add(_Constant):
    """The neurons' activations are raised by `value`. Only for patches in slots."""

    op: Literal["add"]

    @property
    def gain(self) -> Gain:
        """The factor that is left on the activation."""
        return 1.0


class Project(_Strict):
    """The neurons' outputs lose a direction: of each column w of the down projection, ``strength * u (u . w)`` goes."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": [kind]} for kind in NEURON_KINDS]})

    op: Literal["project"]
    direction: DirectionField
    strength: Annotated[float, AfterValidator(_check_strength)] = Field(
        1.0,
        description="any finite number but 0; 1 takes the direction out, 2 mirrors along it",
        json_schema_extra={"not": {"const": 0}},
    )
    neurons: Selection = Field(default_factory=dict)
    shared: Selection = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _no_experts(cls, data: Any) -> Any:
        if isinstance(data, dict) and "experts" in data:
            raise refusal("experts", "`project` is for columns of down projections, which are neurons; give `neurons`")
        if isinstance(data, dict) and INSIDE in data:
            raise refusal(INSIDE, "`project` is for `neurons` and `shared`; inside experts use scale, zero or negate")
        return data

    @model_validator(mode="after")
    def _names_neurons(self) -> Project:
        if not self.neurons and not self.shared:
            raise refusal("", "names no units; give `neurons` or `shared`")
        return self

    @property
    def gain(self) -> Gain:
        """The factor that stands beside the projection."""
        return 1.0

    @property
    def projection(self) -> Projection:
        """What the neurons' outputs lose."""
        return Projection(self.direction, self.strength)


Edit = Annotated[Scale | Zero | Negate | Mask | Set | Add | Project, Field(discriminator="op")]
OPS = ("scale", "zero", "negate", "mask", "set", "add", "project")


class Patch(_Strict):
    """A sparse map from units to gains, with a guard that says which model it is for.

    Two patches do the same when they have the same `digest`, whatever the spelling of their files. `==` also compares
    prose, seals, and how the edits are cut up.
    """

    version: Annotated[Literal[1], BeforeValidator(_check_version)] = Field(description="of this format")
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$"), AfterValidator(_check_name)] = Field(
        json_schema_extra={"not": {"const": RESERVED_NAME}}
    )
    description: str = ""
    model: Guard = Field(default_factory=Guard, description="the guard: what the model must be")
    edits: list[Edit] = Field(min_length=1, max_length=MAX_EDITS, fail_fast=True)
    seal: Annotated[
        dict[Annotated[str, Field(pattern=SEAL_KEY_PATTERN)], Annotated[str, Field(pattern=_HASH_PATTERN)]],
        BeforeValidator(_check_seal),
    ] = Field(
        default_factory=dict,
        description="sha256 of each unit's original weights; written by `vllm-surgery seal`",
        json_schema_extra={"additionalProperties": False},
    )
    provenance: dict[str, Any] = Field(default_factory=dict, description="free: sources and evidence")

    @model_validator(mode="before")
    @classmethod
    def _is_of_bounded_size(cls, data: Any) -> Any:
        return check_size(data)

    @model_validator(mode="after")
    def _units_named_once(self) -> Patch:
        clash = find_clash(self.assignments())
        if clash is not None:
            raise refusal(clash.second.place, f"{clash}: already named in {clash.first.place}")
        return self

    @model_validator(mode="after")
    def _bounded_directions(self) -> Patch:
        numbers = sum(len(edit.direction) for edit in self.edits if isinstance(edit, Project))
        if numbers > MAX_NUMBERS:
            raise refusal("edits", f"directions of {numbers} numbers in all; a patch may have at most {MAX_NUMBERS}")
        return self

    @model_validator(mode="after")
    def _seals_edited_units(self) -> Patch:
        if not self.seal:
            return self
        named: dict[Block, list[IndexRange]] = defaultdict(list)
        for item in self.assignments():
            named[item.block].extend(item.ranges)
        for ranges in named.values():
            ranges.sort()
        for key in self.seal:
            unit = Unit.parse(key)
            if not covers(named[unit.block], unit.index):
                raise refusal(f"seal.{key}", "seals a unit that no edit names")
        return self

    @classmethod
    def parse(cls, content: bytes | str, source: str = "patch", read_direction: ReadDirection | None = None) -> Patch:
        """Reads a patch file's content, YAML or JSON.

        Args:
            content: the file's bytes (UTF-8), at most 1 MiB.
            source: what to call it in errors.
            read_direction: reads files that it names; None: it may name none.

        Raises:
            PatchError: one line with source, place and reason.
        """
        text = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
        return cls._of_plain(parse_document(text, source), source, read_direction)

    @classmethod
    def from_data(cls, data: object, source: str = "patch") -> Patch:
        """Reads a patch from plain data, as `json.loads` would give it.

        Raises:
            PatchError: one line with source, place and reason.
        """
        return cls._of_plain(plain_data(data, source), source)

    @classmethod
    def _of_plain(cls, data: Plain, source: str, read_direction: ReadDirection | None = None) -> Patch:
        if not isinstance(data, dict):
            raise PatchError(source, "", f"is not a patch: expected a mapping, got {type(data).__name__}")
        try:
            return cls.model_validate(data, context={READER: read_direction})
        except ValidationError as error:
            place, reason = _explain(_most_telling(error.errors(include_url=False)))
            raise PatchError(source, place, reason) from None

    def assignments(self, source: str = "") -> Iterator[Assignment]:
        """The edits as assignments, one layer at a time, with the place of each in the file.

        Of neurons inside experts one expert at a time.
        """
        for number, edit in enumerate(self.edits):
            addend, projection = getattr(edit, "addend", 0.0), getattr(edit, "projection", None)
            for block, indices in _selected(edit):
                place = ".".join([f"edits[{number}]", *path_of(block)])
                yield Assignment(
                    block.kind, block.layer, indices, edit.gain, source, place, addend, projection, block.expert
                )

    @cached_property
    def digest(self) -> str:
        """sha256, in hex, of the canonical content: what is done to which units, and the guard. Not the prose."""
        content = json.dumps(self._canonical(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(content.encode("ascii")).hexdigest()

    @property
    def id(self) -> str:
        """``name@digest[:8]``, the patch's name in logs, metrics and responses."""
        return f"{self.name}@{self.digest[:_DIGITS_OF_DIGEST_IN_ID]}"

    def _canonical(self) -> dict[str, Any]:
        """The map from units to gains, independent of how the edits are cut up, ordered or spelled."""
        gains: dict[str, dict[str, list[tuple[IndexRange | None, _Effect]]]] = defaultdict(lambda: defaultdict(list))
        for item in self.assignments():
            entries = gains[item.kind]["/".join(path_of(item.block)[1:])]
            effect = _canonical_effect(item)
            entries.extend([(None, effect)] if item.indices == ALL else [(span, effect) for span in item.indices])
        guard = self.model.given()
        if self.model.architectures is not None:
            guard["architectures"] = sorted(set(self.model.architectures))
        return {
            "version": self.version,
            "model": guard,
            **{kind: {layer: _joined(entries) for layer, entries in layers.items()} for kind, layers in gains.items()},
        }

    def to_data(self, *, name_files: bool = False) -> dict[str, Any]:
        """The patch as plain data, in the file's own form; `from_data` reads it back.

        Args:
            name_files: whether directions that came from files are written as these. Else all numbers stand in it, so
                that no other process needs the files.
        """
        data = self.model_dump(exclude_defaults=True, exclude_none=True, context={FILES: name_files})
        ordered = ("op", "factor", "value", "strength", "direction", *KINDS)
        data["edits"] = [{key: edit[key] for key in ordered if key in edit} for edit in data["edits"]]
        return data

    def to_yaml(self) -> str:
        """The patch as the text of a YAML file; `parse` reads it back, beside the same files of directions."""
        return dump_yaml(self.to_data(name_files=True))

    def to_json(self) -> str:
        """The patch as JSON text; `parse` reads it back, beside the same files of directions."""
        return json.dumps(self.to_data(name_files=True), indent=2) + "\n"


def json_schema() -> dict[str, Any]:
    """The JSON Schema of the patch file, for editors that complete and underline."""
    schema = Patch.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "vllm-surgery patch"
    return schema


def _selected(edit: object) -> Iterator[tuple[Block, Indices]]:
    """The units that an edit names, kind by kind."""
    for kind in KINDS:
        for layer, indices in getattr(edit, kind, {}).items():
            if kind == INSIDE:
                yield from ((ExpertBlock(kind, layer, expert), neurons) for expert, neurons in indices.items())
            else:
                yield UnitBlock(kind, layer), indices


_Effect: TypeAlias = tuple[Gain] | tuple[Gain, float] | tuple[str, float, str]
"""The effect on a unit: its gain, and the constant added to it, if any; or what it loses."""


def _canonical_effect(item: Assignment) -> _Effect:
    if item.projection is not None:
        return "project", item.projection.strength, item.projection.direction.digest
    return (item.gain, item.addend) if item.addend else (item.gain,)


def _joined(entries: list[tuple[IndexRange | None, _Effect]]) -> list[list[Any]]:
    """Sorted ranges with what becomes of them; neighbours of the same become one. None is the whole layer."""
    if entries[0][0] is None:
        return [[ALL, *entries[0][1]]]
    joined: list[tuple[IndexRange, _Effect]] = []
    for span, effect in sorted((span, effect) for span, effect in entries if span is not None):
        if joined and joined[-1][1] == effect and joined[-1][0].last + 1 == span.first:
            joined[-1] = (IndexRange(joined[-1][0].first, span.last), effect)
        else:
            joined.append((span, effect))
    return [[str(span), *effect] for span, effect in joined]


_GOOD_NAME = (
    "1 to 64 lower-case letters, digits, dots, hyphens and underscores, of which the first is a letter or a digit"
)
_WORD_LIMIT = 100  # Of a wrong name in an error, so that what is wrong with it isn't cut away.

_REASONS: Mapping[str, str] = {
    "extra_forbidden": "is not a key of this format",
    "missing": "is missing",
    "union_tag_not_found": f"`op` is missing; it is one of {', '.join(OPS)}",
    "union_tag_invalid": f"`op` must be one of {', '.join(OPS)}",
    "finite_number": "must be a finite number",
    "too_short": "must not be empty",
}


def _most_telling(errors: Sequence[ErrorDetails]) -> ErrorDetails:
    """The one to report. A misspelt key is also a missing one; the misspelling says what to mend."""
    return next((error for error in errors if error["type"] == "extra_forbidden"), errors[0])


def _explain(error: ErrorDetails) -> tuple[str, str]:
    """Place and reason of a pydantic error, in the words of the file rather than of its parser."""
    steps = list(error["loc"])
    if steps[:2] == ["model", "intermediate_size"]:
        del steps[2:3]  # Pydantic's name for one arm of the union.
    if steps[-1:] == ["[key]"]:
        del steps[-1]
    if len(steps) > 2 and steps[0] == "edits" and steps[2] in OPS:  # noqa: PLR2004
        del steps[2]
    if error["type"] == "refused":
        return _join_place([*steps, *filter(None, [error["ctx"]["place"]])]), error["ctx"]["reason"]
    if steps == ["name"] and error["type"] == "string_pattern_mismatch":
        return "name", f"expected {_GOOD_NAME}, got {one_line(repr(error['input']), _WORD_LIMIT)}"
    if error["type"] in _REASONS:
        return _join_place(steps), _REASONS[error["type"]]
    got = "" if isinstance(error["input"], dict | list) else f", got {error['input']!r}"
    return _join_place(steps), f"{error['msg'][0].lower()}{error['msg'][1:]}{got}"


def _join_place(steps: list[str | int]) -> str:
    place = ""
    for step in steps:
        text = str(step)
        separator = "" if not place or isinstance(step, int) or text.startswith("[") else "."
        place += f"[{step}]" if isinstance(step, int) else f"{separator}{text}"
    return place
