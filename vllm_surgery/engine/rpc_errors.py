# SPDX-License-Identifier: Apache-2.0
"""Errors as plain data, which worker RPCs return instead of raising, and their way back to exceptions."""

from __future__ import annotations

from typing import Any

from vllm_surgery.errors import (
    CannotSwapError,
    CheckpointError,
    ConflictError,
    EngineError,
    MismatchError,
    PatchError,
    SurgeryError,
    UsageError,
    one_line,
)

# The first that an exception belongs to counts, so the special ones come before their bases.
_KINDS: dict[str, type[SurgeryError]] = {
    cls.__name__: cls
    for cls in (
        ConflictError,
        CannotSwapError,
        MismatchError,
        PatchError,
        UsageError,
        CheckpointError,
        EngineError,
        SurgeryError,
    )
}


def failure_of(error: Exception) -> dict[str, Any]:
    """An exception as plain data."""
    for kind, cls in _KINDS.items():
        if isinstance(error, cls):
            data = {"ok": False, "kind": kind, "error": str(error)}
            return (
                data | {"parts": [error.source, error.place, error.detail]} if isinstance(error, PatchError) else data
            )
    return {"ok": False, "kind": "failed", "error": one_line(f"{type(error).__name__}: {error}")}


def error_of(failure: dict[str, Any], rank: str) -> SurgeryError:
    """Exception that `failure_of` made plain; a failure of the machine, not of the request, names its rank."""
    cls = _KINDS.get(failure["kind"], EngineError)
    if "parts" in failure and issubclass(cls, PatchError):
        return cls(*failure["parts"])
    return cls(f"{rank}: {failure['error']}" if cls is EngineError else failure["error"])
