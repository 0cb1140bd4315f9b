# SPDX-License-Identifier: Apache-2.0
"""Runs the files that take longest first, so that at the end no process is left alone with one of them.

How long each took is kept in `durations.json`, in seconds that only mean something beside each other:
``make test ARGS=--write-durations`` writes it anew. Those that take long are also marked `slow`, which `make check` leaves
out.
"""

from __future__ import annotations

import json
from collections import Counter
from itertools import groupby
from pathlib import Path

import pytest

TABLE = Path(__file__).with_name("durations.json")
OF_NEW_FILES, OF_NEW_ENGINES = 5.0, 60.0
"""Seconds for which a file is taken that isn't in the table, and one whose tests start engines."""

LONG = 10.0
"""Seconds from which on a file is slow."""

LEAST = 1.0
"""Seconds below which it doesn't matter when a file is run."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-durations", action="store_true", help=f"keep how long each file took in {TABLE.name}")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--write-durations") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Recorder(config.rootpath))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sorts files; the tests of a file stay together and in order. Marks those of files that take long, before tests are
    chosen by their marks.
    """
    table: dict[str, float] = json.loads(TABLE.read_text())

    def seconds(item: pytest.Item) -> float:
        new = OF_NEW_ENGINES if item.get_closest_marker("engine") else OF_NEW_FILES
        return table.get(item.path.relative_to(config.rootpath).as_posix(), new)

    longest = {path: max(map(seconds, of_file)) for path, of_file in groupby(items, lambda item: item.path)}
    items.sort(key=lambda item: -longest[item.path])
    for item in items:
        if longest[item.path] >= LONG:
            item.add_marker("slow")


class _Recorder:
    def __init__(self, root: Path) -> None:
        self._seconds: Counter[str] = Counter()
        self._root = root

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[report.location[0]] += report.duration  # type: ignore[assignment]

    def pytest_sessionfinish(self) -> None:
        known = {
            file: seconds for file, seconds in json.loads(TABLE.read_text()).items() if (self._root / file).exists()
        }
        table = known | self._seconds
        kept = {file: round(seconds) for file, seconds in table.items() if seconds >= LEAST}
        longest_first = sorted(kept.items(), key=lambda item: (-item[1], item[0]))
        TABLE.write_text(json.dumps(dict(longest_first), indent=1) + "\n")
