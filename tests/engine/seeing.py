# SPDX-License-Identifier: Apache-2.0
"""What vLLM needs for models that also see pictures: torchvision, which it imports even where they only read."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

WITHOUT_OPERATORS = Path(sys.prefix) / "share" / "torchvision"
"""Where `deploy/install.py` puts torchvision's Python code for tests, where there is no build for the installed torch."""


def with_torchvision() -> dict[str, str]:
    """An environment in which torchvision can be imported, on top of this one. Skips where there is none."""
    if importlib.util.find_spec("torchvision") is not None:
        return {}
    if not WITHOUT_OPERATORS.is_dir():
        pytest.skip("vLLM imports these models' image processors, which import torchvision, and there is none")
    there = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([*([there] if there else []), str(WITHOUT_OPERATORS)])}
