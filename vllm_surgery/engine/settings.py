# SPDX-License-Identifier: Apache-2.0
"""What the operator asked for: the ``vllm_surgery`` mapping in ``--additional-config``.

It lies in vLLM's own config, so it reaches every process on every node.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vllm_surgery.errors import UsageError
from vllm_surgery.patch import Patch, load_patch
from vllm_surgery.stack import PatchSet, SourcedPatch

if TYPE_CHECKING:
    from collections.abc import Mapping

KEY = "vllm_surgery"
DISABLE_VARIABLE = "VLLM_SURGERY_DISABLE"


class Settings(BaseModel):
    """The mapping's keys.

    Attributes:
        patches: file names, or patches themselves as plain data.
        sources: what to call each patch in errors, where it isn't a file name any more.
        detect_loops: whether the tokens of every request are watched for loops.
        log_text: whether log lines may hold what a model wrote.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    patches: list[str | dict[str, Any]] = Field(default_factory=list)
    sources: list[str] = Field(default_factory=list)
    detect_loops: bool = True
    log_text: bool = False

    @classmethod
    def of(cls, additional_config: object) -> Settings:
        """The settings in vLLM's ``additional_config``; the defaults where it has none of ours.

        Raises:
            UsageError: they are there but wrong.
        """
        if not isinstance(additional_config, dict) or KEY not in additional_config:
            return cls()
        try:
            return cls.model_validate(additional_config[KEY])
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join([f"additional_config.{KEY}", *(str(step) for step in first["loc"][:2])])
            raise UsageError(f"{place}: {first['msg']}") from None

    @classmethod
    def carrying(cls, patches: PatchSet) -> Settings:
        """Settings that hold the patches themselves, so that no other process or node needs their files."""
        return cls(
            patches=[member.patch.to_data() for member in patches.members],
            sources=[member.source for member in patches.members],
        )

    def put_into(self, additional_config: dict[str, Any]) -> dict[str, Any]:
        """A copy of vLLM's ``additional_config`` with these settings in it; its own hold where these are defaults."""
        return {**additional_config, KEY: {**additional_config.get(KEY, {}), **self.model_dump(exclude_defaults=True)}}

    def load(self) -> PatchSet:
        """Reads and validates the patches.

        Raises:
            UsageError: a file is missing.
            PatchError: a patch is refused.
        """
        return PatchSet(tuple(self._load_one(number, item) for number, item in enumerate(self.patches)))

    def _load_one(self, number: int, item: str | dict[str, Any]) -> SourcedPatch:
        if isinstance(item, str):
            return SourcedPatch(item, load_patch(item))
        named = number < len(self.sources)
        source = self.sources[number] if named else f"{KEY}.patches[{number}] ({item.get('name', 'unnamed')})"
        return SourcedPatch(source, Patch.from_data(item, source))


def disabled(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the plugin is to be nothing at all."""
    return environment.get(DISABLE_VARIABLE, "").strip().lower() not in {"", "0", "false", "no"}
