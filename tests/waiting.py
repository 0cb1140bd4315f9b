# SPDX-License-Identifier: Apache-2.0
"""Waiting for what comes sooner or later. How long that takes is no business of a test's: see `tests.watchdog`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Found = TypeVar("Found")


def until(look: Callable[[], Found], reached: Callable[[Found], object] = bool, every: float = 0.05) -> Found:
    """The first that is seen and that is as it should be, of what is looked at every so many seconds."""
    while not reached(found := look()):
        time.sleep(every)
    return found
