# SPDX-License-Identifier: Apache-2.0
"""Names of arms' patches in slots: none that another arm's patch has there, or somebody else's."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

from vllm_surgery.patch.patch_set import NO_PATCH

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_LONGEST = 56
"""Of the part that stays; with a number behind it that is within what a patch may be called."""


def unused_name(name: str, taken: Collection[str]) -> str:
    """`name`, or where that is taken the same with a number behind it."""
    if name not in taken and name != NO_PATCH:
        return name
    numbered = (f"{name[:_LONGEST]}-{number}" for number in count(2))
    return next(one for one in numbered if one not in taken)


def renamed(patch: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The patch, as plain data, by another name. It does the same, so its digest stays."""
    return {**patch, "name": name}
