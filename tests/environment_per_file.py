# SPDX-License-Identifier: Apache-2.0
"""What the tests of a file leave in the environment isn't there for those of the next, and neither is what they took."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module", autouse=True)
def _environment_per_file() -> Iterator[None]:
    """vLLM and `serve` set variables for their process, and a test that calls them in its own can't know which."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)
