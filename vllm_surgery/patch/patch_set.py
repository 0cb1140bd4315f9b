# SPDX-License-Identifier: Apache-2.0
"""Several patches at once. They may name no unit in common, so their order doesn't matter."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from vllm_surgery.errors import PatchError
from vllm_surgery.patch.files import load_patch
from vllm_surgery.patch.format import RESERVED_NAME, Patch
from vllm_surgery.patch.units import find_clash

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from vllm_surgery.patch.units import Assignment

NO_PATCH = RESERVED_NAME
"""The id of the empty set: an unpatched model."""

MOST_PATCHES = 16
"""Patches that may be active together. Their id names each, and stands in metrics, logs and every output."""

LONGEST_ID = 256
"""Characters of an id. A longer one names as many patches as fit, counts the others and ends in a digest of all."""

_DIGITS = 16


@dataclass(frozen=True)
class SourcedPatch:
    """A patch and where it came from, for errors that name the file."""

    source: str
    patch: Patch


@dataclass(frozen=True)
class PatchSet:
    """The patches that are to be active together.

    Raises:
        PatchError: there are too many, or two of them name the same unit.
    """

    members: tuple[SourcedPatch, ...] = ()

    def __post_init__(self) -> None:
        if len(self.members) > MOST_PATCHES:
            extra = self.members[MOST_PATCHES].source
            raise PatchError(extra, "", f"is one patch too many: at most {MOST_PATCHES} can be active together")
        clash = find_clash(self.assignments())
        if clash is not None:
            raise PatchError(
                clash.second.source,
                clash.second.place,
                f"{clash}: already named in {clash.first.source}, {clash.first.place}",
            )

    @classmethod
    def load(cls, paths: Iterable[str | Path]) -> PatchSet:
        """Reads patch files.

        Raises:
            UsageError: a file is missing.
            PatchError: a file is refused, or two name the same unit.
        """
        return cls(tuple(SourcedPatch(str(path), load_patch(path)) for path in paths))

    @classmethod
    def from_data(cls, data: Iterable[Mapping[str, Any]]) -> PatchSet:
        """The set whose `to_data` this is.

        Raises:
            PatchError: a patch is refused, or two name the same unit.
        """
        return cls(tuple(SourcedPatch(item["source"], Patch.from_data(item["patch"], item["source"])) for item in data))

    def to_data(self) -> list[dict[str, Any]]:
        """Plain data, for other processes."""
        return [{"source": member.source, "patch": member.patch.to_data()} for member in self.members]

    @cached_property
    def id(self) -> str:
        """The ids of the patches, sorted and joined by ``+``; `NO_PATCH` where there are none.

        Ids that would be longer than `LONGEST_ID` together are shortened.
        """
        ids = sorted(member.patch.id for member in self.members)
        joined = "+".join(ids) or NO_PATCH
        return joined if len(joined) <= LONGEST_ID else _shortened(ids, joined)

    def __len__(self) -> int:
        return len(self.members)

    @property
    def needs_slots(self) -> bool:
        """True if any edit needs a constant, which weights can't hold."""
        return any(item.addend for item in self.assignments())

    def assignments(self) -> Iterator[Assignment]:
        """The assignments of all members, with the place of each."""
        for member in self.members:
            yield from member.patch.assignments(member.source)


def _shortened(ids: list[str], joined: str) -> str:
    digest = hashlib.sha256(joined.encode("ascii")).hexdigest()[:_DIGITS]
    shown = next(n for n in range(len(ids), -1, -1) if len("+".join(ids[:n])) <= LONGEST_ID // 2)
    return "+".join([*ids[:shown], f"{len(ids) - shown}-more@{digest}"])
