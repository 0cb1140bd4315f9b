# SPDX-License-Identifier: Apache-2.0
"""How the tasks judge answers. lm-evaluation-harness loads this file by itself, in an environment without this package."""

from __future__ import annotations

import re
from typing import Any


def right(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether one of the right answers is said, as words of its own."""
    said = results[0].casefold()
    found = (re.search(rf"(?<!\w){re.escape(answer.casefold())}(?!\w)", said) for answer in doc["answers"])
    return {"right": float(any(found))}


def different_lines(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """How many lines differ from each other, without what numbers or marks them."""
    lines = (re.sub(r"^[\s\d.)*#-]+", "", line).strip().casefold() for line in results[0].splitlines())
    return {"different_lines": float(len({*lines} - {""}))}
