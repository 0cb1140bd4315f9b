# SPDX-License-Identifier: Apache-2.0
"""Settings of the plugin: the ``vllm_surgery`` mapping in ``--additional-config``.

It lies in vLLM's own config, so it reaches every process on every node.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from vllm_surgery.client.protocol import MOST_HELD_BACK, MOST_SLOTS
from vllm_surgery.errors import PatchError, UsageError, first_problem
from vllm_surgery.imports.loading import load_named
from vllm_surgery.imports.remote import is_address
from vllm_surgery.patch.format import Patch
from vllm_surgery.patch.patch_set import PatchSet, SourcedPatch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm_surgery.engine.rescue.policies import Policies

KEY = "vllm_surgery"
DISABLE_VARIABLE = "VLLM_SURGERY_DISABLE"


class CarriedPatch(dict[str, Any]):
    """A patch as plain data, which logs show by its id: with its seals it would be a page of hashes."""

    def __repr__(self) -> str:
        try:
            return f"<{Patch.from_data(self).id}>"
        except PatchError:
            return "<a patch that is refused>"


class Settings(BaseModel):
    """Keys of the mapping.

    Attributes:
        patches: file names, or patches themselves as plain data.
        sources: what to call each patch in errors, where it isn't a file name any more.
        patch_dirs: folders whose patches callers may ask for by name.
        watch: whether to follow the files in `patches`, or which files to follow.
        allow_swaps: whether anything can be changed over HTTP.
        allow_remote_swaps: whether swaps from other machines are accepted where there is no API key.
        allow_inline: whether callers may send patches themselves, rather than names.
        detect_loops: whether the tokens of every request are watched for loops.
        mask_buffers: whether every router gets a place for masks at the start, so that they can be swapped in later
            where the model is compiled. A router that a patch in `patches` masks an expert of has one anyway.
        log_text: whether log lines may hold what a model wrote.
        slots: how many patches may be served beside the unpatched model, each request choosing one. `patches` are then
            the default of requests that choose none, and the weights stay as the checkpoint has them. 0: none.
        on_loop: what is done to an answer that loops: actions, or a mapping of kinds of loop to theirs. None: nothing,
            and no request can ask for it.
        on_loop_allowed: further actions that a request may ask for.
        on_loop_hold_back: how many tokens the client of a streamed answer is behind, so that as many of a loop can be
            taken back.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    patches: list[str | dict[str, Any]] = Field(default_factory=list)
    sources: list[str] = Field(default_factory=list)
    patch_dirs: list[str] = Field(default_factory=list)
    watch: bool | list[str] = False
    allow_swaps: bool = True
    allow_remote_swaps: bool = False
    allow_inline: bool = True
    detect_loops: bool = True
    mask_buffers: bool = False
    log_text: bool = False
    slots: int = Field(default=0, ge=0, le=MOST_SLOTS)

    on_loop: str | list[str] | dict[str, str | list[str]] | None = None
    on_loop_allowed: list[str] = Field(default_factory=list)
    on_loop_hold_back: int = Field(default=0, ge=0, le=MOST_HELD_BACK)

    @model_validator(mode="after")
    def _rescues(self) -> Settings:
        if self.on_loop is None and self.on_loop_allowed:
            raise PydanticCustomError("on_loop", "on_loop_allowed: needs on_loop, which may be observe")
        if self.on_loop is None and self.on_loop_hold_back:
            reason = "on_loop_hold_back: needs on_loop, since nothing else takes tokens back"
            raise PydanticCustomError("on_loop", "{reason}", {"reason": reason})
        if self.on_loop is not None:
            try:
                self.policies()
            except UsageError as error:
                raise PydanticCustomError("on_loop", "{reason}", {"reason": str(error)}) from None
        return self

    @model_validator(mode="after")
    def _watches_files(self) -> Settings:
        if self.watch is True and not (self.patches and all(isinstance(item, str) for item in self.patches)):
            raise PydanticCustomError("watch", "watch: true needs `patches` that are files")
        if any(map(is_address, self.watched_files())):
            raise PydanticCustomError("watch", "watch: an address can't be followed, only files")
        return self

    @classmethod
    def of(cls, additional_config: object) -> Settings:
        """Settings in vLLM's ``additional_config``; the defaults where it has none of ours.

        Raises:
            UsageError: they are there but wrong.
        """
        if not isinstance(additional_config, dict) or KEY not in additional_config:
            return cls()
        try:
            return cls.model_validate(additional_config[KEY])
        except ValidationError as error:
            steps, reason = first_problem(error)
            place = ".".join([f"additional_config.{KEY}", *map(str, steps[:2])])
            raise UsageError(f"{place}: {reason}") from None

    @property
    def asks_for_patches(self) -> bool:
        """Whether a server with these has patches, or is to have some later."""
        return bool(self.patches or self.patch_dirs or self.watch or self.mask_buffers or self.slots)

    def carrying(self, patches: PatchSet) -> Settings:
        """Copy with the patches themselves in it, so that no other process or node needs their files."""
        carried = {
            "patches": [member.patch.to_data() for member in patches.members],
            "sources": [member.source for member in patches.members],
            "watch": self.watched_files() or False,
        }
        return self.model_copy(update=carried)

    def policies(self) -> Policies:
        """What is done about loops; nothing where `on_loop` is None.

        Raises:
            UsageError: it can't be done.
        """
        # Only here: the detectors load Numba, for which most processes have no use.
        from vllm_surgery.engine.rescue.policies import Policies

        if not self.detect_loops:
            raise UsageError("on_loop: needs detect_loops, since what isn't looked for can't be acted upon")
        return Policies.parse(self.on_loop or "observe", self.on_loop_allowed, slots=bool(self.slots))

    def watched_files(self) -> list[str]:
        """Absolute paths of the files to watch; empty where none are watched."""
        if self.watch is True:
            return [_absolute(item) for item in self.patches if isinstance(item, str)]
        return [*map(_absolute, self.watch)] if isinstance(self.watch, list) else []

    def put_into(self, additional_config: dict[str, Any]) -> dict[str, Any]:
        """Copy of vLLM's ``additional_config`` with these settings in it. vLLM's log shows patches by their ids."""
        data = self.model_dump(exclude_defaults=True)
        if "patches" in data:
            data["patches"] = [CarriedPatch(item) if isinstance(item, dict) else item for item in data["patches"]]
        return {**additional_config, KEY: data}

    def load(self) -> PatchSet:
        """Reads and validates the patches.

        Raises:
            UsageError: a file is missing.
            PatchError: a patch is refused.
        """
        return PatchSet(tuple(self._load_one(number, item) for number, item in enumerate(self.patches)))

    def _load_one(self, number: int, item: str | dict[str, Any]) -> SourcedPatch:
        if isinstance(item, str):
            return load_named(item)
        named = number < len(self.sources)
        source = self.sources[number] if named else f"{KEY}.patches[{number}] ({item.get('name', 'unnamed')})"
        return SourcedPatch(source, Patch.from_data(item, source))


def _absolute(file: str) -> str:
    return file if is_address(file) else str(Path(file).absolute())


def disabled(environment: Mapping[str, str] = os.environ) -> bool:
    """True if the plugin is switched off by the environment."""
    return environment.get(DISABLE_VARIABLE, "").strip().lower() not in {"", "0", "false", "no"}
