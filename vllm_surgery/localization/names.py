# SPDX-License-Identifier: Apache-2.0
"""Names for the patch of a search: none that another arm of its trial, or another file, has."""

from __future__ import annotations

import re
from pathlib import Path

from vllm_surgery.errors import PatchError, UsageError
from vllm_surgery.evaluation.arms import UNPATCHED, of_penalty
from vllm_surgery.localization.candidates import NAME, Candidate
from vllm_surgery.patch.units import Unit

_LONGEST = 56
"""Of a model's part of a name; with its ending that stays within what a patch may be called."""


def default_name(model: str) -> str:
    """The name of a patch for a model: the last part of the model's name, as patch names may be spelled."""
    last = re.sub(r"[^a-z0-9._-]+", "-", Path(model).name.lower()).strip("-._")
    return f"{last[:_LONGEST] or 'model'}-noloop"


def check_name(name: str, penalty: float) -> None:
    """Sees that the patch can be called that.

    Args:
        name: of the patch.
        penalty: of the trial's repetition penalty, which is an arm of its own.

    Raises:
        UsageError: it can't.
    """
    try:
        Candidate.of({Unit("neurons", 0, 0): 0.0}, "name").patch(name, {})
    except PatchError as error:
        raise UsageError(f"--name {name}: {error.detail}") from None
    if name in {UNPATCHED, of_penalty(penalty).name, NAME}:
        raise UsageError(f"--name {name}: a search calls something else that")
