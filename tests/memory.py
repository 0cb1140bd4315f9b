# SPDX-License-Identifier: Apache-2.0
"""Memory that a package asked for and holds. Other threads of the tests' process ask for some too, which isn't its own."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType


def held(package: ModuleType) -> int:
    """Bytes that lines of a package, or of packages in it, asked for and that are still held; `tracemalloc` runs."""
    folder = Path(package.__file__ or "").parent
    traces = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, f"{folder}/*")])
    return sum(trace.size for trace in traces.traces)
