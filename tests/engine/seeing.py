# SPDX-License-Identifier: Apache-2.0
"""What vLLM imports for models that also see pictures, even where they only read: torchvision, and timm for one."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

FOR_TESTS = Path(sys.prefix) / "share" / "seeing"
"""Where `deploy/install.py` puts what of it isn't installed."""


def with_eyes() -> dict[str, str]:
    """An environment in which all of it can be imported, on top of this one. Skips where it can't."""
    missing = [
        name
        for name in ("torchvision", "timm")
        if importlib.util.find_spec(name) is None and not (FOR_TESTS / name).is_dir()
    ]
    if missing:
        pytest.skip(f"vLLM imports {' and '.join(missing)} for these models; `make install EXTRAS='--extra test'`")
    there = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([*([there] if there else []), str(FOR_TESTS)])}
