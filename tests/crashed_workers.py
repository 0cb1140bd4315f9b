# SPDX-License-Identifier: Apache-2.0
"""What becomes of the tests of a process of pytest-xdist that died: the one that it was in has failed, the others run.

xdist 3.8 hands a dead process's files on as they are, with `--dist loadfile`: the test in which it died runs again, and ends
the next process too, and a file that was through goes to a process that then waits for its tests for ever.
"""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Takes the place of xdist's scheduler where whole files are handed out."""
    return Scheduling(config, log) if config.getoption("dist") == "loadfile" else None


class Scheduling(LoadFileScheduling):  # type: ignore[misc]
    """Hands out files, and of a dead process's those tests that nobody has begun."""

    def remove_node(self, node: Any) -> str | None:
        """Takes a process out, and gives the test that it died in, if it died."""
        files = self.assigned_work.pop(node)
        died_in: str | None = next((test for tests in files.values() for test, done in tests.items() if not done), None)
        if died_in is None:
            return None
        for file, tests in files.items():
            left = {test: done or test == died_in for test, done in tests.items()}
            if not all(left.values()):
                self.workqueue[file] = left
        for other in self.assigned_work:
            self._reschedule(other)
        return died_in

    def _reschedule(self, node: Any) -> None:
        """Hands out files until the process knows of two tests, or that there are no more: it keeps its last one until then."""
        super()._reschedule(node)
        while not node.shutting_down and self._pending_of(self.assigned_work[node]) < 2:
            super()._reschedule(node)
