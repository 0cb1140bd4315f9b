# SPDX-License-Identifier: Apache-2.0
"""Which vLLMs this release is tested with: what its own metadata asks for, so that it is said once."""

from __future__ import annotations

import importlib.metadata
import re

_ENGINE = re.compile(r"vllm(?![\w-])\s*\(?(?P<range>[^;)]*)")


def outside_tested(version: str) -> str | None:
    """Says that a vLLM isn't one that this release is tested with; None where it is, or where that can't be told.

    Nothing is refused for it: what is used of vLLM is looked for, whatever its version.
    """
    # Only here: vLLM brings it, and without vLLM nobody asks.
    from packaging.specifiers import InvalidSpecifier, SpecifierSet
    from packaging.version import InvalidVersion

    tested = tested_range()
    try:
        if tested is None or SpecifierSet(tested).contains(version, prereleases=True):
            return None
    except (InvalidSpecifier, InvalidVersion):  # A build of somebody's own.
        pass
    return f"{version} isn't one that this release is tested with ({tested})"


def tested_range() -> str | None:
    """The versions of vLLM that the extra for GPUs asks for, such as ``<0.34,>=0.30``."""
    required = importlib.metadata.requires("vllm-surgery") or []
    return next((found["range"].strip() for each in required if (found := _ENGINE.match(each))), None)
