# SPDX-License-Identifier: Apache-2.0
"""Probe sets: prompts as data files, those that come with the package and those of a user."""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vllm_surgery.errors import PatchError, UsageError, first_problem
from vllm_surgery.evaluation.tasks.checks import Check  # noqa: TC001 - pydantic reads it
from vllm_surgery.evaluation.tasks.short_lists import ShortList
from vllm_surgery.patch.document import parse_document
from vllm_surgery.patch.files import read_bounded

if TYPE_CHECKING:
    from collections.abc import Sequence

Use: TypeAlias = Literal["loops", "healthy", "short", "skills", "text"]
"""The use of a set: to set off loops, ordinary requests, lists with known answers, tasks, or reference replies."""

Half: TypeAlias = Literal["search", "choice", "held-out"]
"""A part of a divided set: what a search for an edit may look at, what it chooses by, or what it is judged by."""

Form: TypeAlias = Literal["chat", "completion"]
"""How a prompt is put to a model: as a message under its chat template, or as text that it goes on from."""

Model = TypeVar("Model", bound=BaseModel)

_ID = r"^[a-z0-9][a-z0-9._-]{0,63}$"
_NEEDED: dict[str, str] = {"short": "items", "skills": "check", "text": "reply"}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Probe(_Strict):
    """One prompt, and what its set's use asks for besides.

    Attributes:
        id: its name within the set.
        completion: a text that goes on with the answer, for models that weren't tuned for chats; where it isn't said,
            the prompt and an empty line.
        subject: what it asks about. Prompts with one subject are taken together where a figure's interval is reckoned;
            where it isn't said, each stands for itself.
        half: of a divided set, the part to which it belongs.
        items: of a short list: what must be named, an item as a list where it has several names, lower case. Of a probe
            for loops: right entries, as far as the list has an end.
        choose: how many of the items are to be named; all of them where it isn't said.
        optional: names that may stand in the answer as well.
        check: what makes an answer right.
        reply: a reference answer.
    """

    id: str = Field(pattern=_ID)
    prompt: str = Field(min_length=1)
    completion: Annotated[str, Field(min_length=1)] | None = None
    subject: str | None = Field(default=None, pattern=_ID)
    half: Half | None = None
    items: list[str | list[str]] | None = None
    choose: int | None = Field(default=None, ge=1)
    optional: list[str] = []
    check: Check | None = None
    reply: Annotated[str, Field(min_length=1)] | None = None

    @property
    def is_judged(self) -> bool:
        """Whether an edit may be judged by it: no search for one looks at it."""
        return self.half in {None, "held-out"}

    def asked(self, form: Form) -> str:
        """The words that are put to the model."""
        return self.prompt if form == "chat" else self.completion or f"{self.prompt}\n\n"

    def short_list(self) -> ShortList:
        """The known answer of a short list."""
        names = [(item,) if isinstance(item, str) else tuple(item) for item in self.items or []]
        return ShortList(tuple(names), self.choose or len(names), tuple(self.optional))


class ProbeSet(_Strict):
    """Prompts with one use."""

    name: str = Field(pattern=_ID)
    use: Use
    about: str = ""
    probes: list[Probe] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _is_probe_file(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            raise ValueError("is no probe file: expected a mapping with `name`, `use` and `probes`")
        if data.get("probes") == []:
            raise ValueError("the probe file has no probes")
        return data

    @model_validator(mode="after")
    def _whole(self) -> ProbeSet:
        ids = [probe.id for probe in self.probes]
        twice = next((one for one in ids if ids.count(one) > 1), None)
        if twice is not None:
            raise ValueError(f"the id {twice} stands twice")
        needed = _NEEDED.get(self.use)
        for probe in self.probes:
            if needed is not None and getattr(probe, needed) is None:
                raise ValueError(f"{probe.id}: a probe for `use: {self.use}` needs `{needed}`")
        return self

    @property
    def digest(self) -> str:
        """sha256 of all that it says, so that a report names the very prompts."""
        return hashlib.sha256(json.dumps(self.model_dump(exclude_defaults=True), sort_keys=True).encode()).hexdigest()

    def halves(self) -> dict[str, int]:
        """The number of probes in each part; empty where the set isn't divided."""
        marks = [probe.half for probe in self.probes if probe.half is not None]
        return {half: marks.count(half) for half in sorted(set(marks))}


def built_in() -> list[str]:
    """Names of the sets that come with the package."""
    return names_in(_folder())


def names_in(folder: resources.abc.Traversable) -> list[str]:
    """Names of the files that the package has in a folder of its data."""
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def base_name(name: str) -> str:
    """The set's own name, without the part that may stand behind it (``lists:held-out``)."""
    before, _, half = name.rpartition(":")
    return before if before and half in get_args(Half) else name


def named_twice(names: Sequence[str]) -> str | None:
    """Why sets can't be asked side by side, in words; None where they can.

    The prompts of a set that is named twice, by whatever path to its file, or beside a part of itself, would be asked
    twice, and what is one answer would count as two.
    """
    known = [(name, *_file_and_part(name)) for name in names]
    for number, (name, file, part) in enumerate(known):
        for before, other, part_before in known[:number]:
            if file == other and (part == part_before or "" in {part, part_before}):
                return f"{name}: is named twice" if name == before else f"{name}: has prompts in common with {before}"
    return None


def _file_and_part(name: str) -> tuple[str, str]:
    base = base_name(name)
    return base if base in built_in() else str(Path(base).resolve()), name.removeprefix(base)


def load_probes(name: str) -> ProbeSet:
    """Reads a set.

    Args:
        name: of a set that comes with the package, or of a file; with ``:search``, ``:choice`` or ``:held-out`` behind
            it that part.

    Raises:
        UsageError: there is no such set, file or half, or it isn't a probe file; one line with the place.
    """
    if (base := base_name(name)) != name:
        whole, half = load_probes(base), name.rpartition(":")[2]
        kept = [probe for probe in whole.probes if probe.half == half]
        if not kept:
            raise UsageError(f"{base}: has no half {half}")
        return whole.model_copy(update={"probes": kept})
    if name in built_in():
        return _parse((_folder() / f"{name}.yaml").read_bytes(), f"{name}.yaml")
    if not Path(name).suffix and not Path(name).exists():
        raise UsageError(f"{name}: no such probe set; there are {', '.join(built_in())}, and files of your own")
    return _parse(read_bounded(Path(name)), name)


def _folder() -> resources.abc.Traversable:
    return resources.files("vllm_surgery.evaluation") / "data" / "probes"


def read_model(kind: type[Model], content: bytes, source: str) -> Model:
    """A data file as its model.

    Raises:
        UsageError: it isn't one; one line with the place.
    """
    try:
        return kind.model_validate(parse_document(content, source))
    except PatchError as error:
        raise UsageError(str(error)) from None
    except ValidationError as error:
        steps, reason = first_problem(error)
        raise UsageError(": ".join(filter(None, [source, ".".join(map(str, steps)), reason]))) from None


def _parse(content: bytes, source: str) -> ProbeSet:
    if not content.strip():
        raise UsageError(f"{source}: the probe file is empty")
    return read_model(ProbeSet, content, source)
