# SPDX-License-Identifier: Apache-2.0
"""Patch ids as vLLM's weight versions, which come with every output."""

from __future__ import annotations

from vllm_surgery.patch.patch_set import NO_PATCH

UNSET_VERSION = "default"
"""vLLM's weight version until somebody sets one."""


_told: str | None = None
"""The version that this process has set last. vLLM's outputs carry theirs from 0.32 on."""

_seen: str | None = None
"""The version of the last outputs that this process has seen."""


def note_version(weight_version: str) -> None:
    """Notes the version that the engine of this process has from now on."""
    global _told  # noqa: PLW0603 - a process has one engine
    _told = weight_version


def noted_version() -> str | None:
    """Version that was noted last."""
    return _told


def see_version(weight_version: str | None) -> None:
    """Notes the version of outputs; None for outputs without tokens."""
    global _seen  # noqa: PLW0603 - a process has one engine
    if weight_version is not None:
        _seen = weight_version


def served_patch(at_start: str, *, alone: bool) -> str:
    """Id of the patch that the engine's weights hold, as far as this process knows.

    Args:
        at_start: what they held when the server started.
        alone: whether no other process swaps. Else the last outputs tell, of which some may be from before a swap.
    """
    version = _told if alone else _seen
    return at_start if version is None else patch_of(version)


def patch_of(weight_version: str) -> str:
    """Id of the patch that made tokens of `weight_version`."""
    return NO_PATCH if weight_version == UNSET_VERSION else weight_version


def version_of(patch_id: str) -> str:
    """Weight version of tokens that the patch `patch_id` makes."""
    return UNSET_VERSION if patch_id == NO_PATCH else patch_id
