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
    """The mapping's keys. `patches` holds file names, or patches themselves as plain data."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    patches: list[str | dict[str, Any]] = Field(default_factory=list)

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
            place = ".".join(str(step) for step in first["loc"][:2])
            raise UsageError(f"additional_config.{KEY}{'.' * bool(place)}{place}: {first['msg']}") from None

    def load(self) -> PatchSet:
        """Reads and validates the patches.

        Raises:
            UsageError: a file is missing.
            PatchError: a patch is refused.
        """
        return PatchSet(tuple(self._load_one(number, item) for number, item in enumerate(self.patches)))

    @staticmethod
    def _load_one(number: int, item: str | dict[str, Any]) -> SourcedPatch:
        if isinstance(item, str):
            return SourcedPatch(item, load_patch(item))
        source = f"{KEY}.patches[{number}] ({item.get('name', 'unnamed')})"
        return SourcedPatch(source, Patch.from_data(item, source))


def disabled(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the plugin is to be nothing at all."""
    return environment.get(DISABLE_VARIABLE, "").strip().lower() not in {"", "0", "false", "no"}
