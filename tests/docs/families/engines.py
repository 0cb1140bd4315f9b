# SPDX-License-Identifier: Apache-2.0
"""Cells about real engines, from the claims in `tests.engine.shown` and the tests that there are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.engine import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engine.shown import Claim, Column

ROOT = Path(__file__).parents[3]
ENGINE = "tests/engine/"


def known_tests() -> frozenset[str]:
    """The ids of all tests in the files that claims name, without ``tests/engine/``."""
    files = sorted({f"{ENGINE}{test.split('::', maxsplit=1)[0]}" for test in _named()})
    there = [file for file in files if (ROOT / file).is_file()]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "--quiet", "-p", "no:cacheprovider", *there],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return frozenset(line.removeprefix(ENGINE) for line in done.stdout.splitlines() if "::" in line)


def cell(column: Column, row: str, existing: frozenset[str]) -> str:
    """What a column says of a row.

    Raises:
        AssertionError: nothing, or something that no test shows.
    """
    single = column.instead.get(row)
    for claim in column.claims if single is None else (single,):
        if claim.test is None or claim.test.replace("{row}", row) in existing:
            return claim.says
    assert single is None, f"{column.title}, {row}: there is no {single.test}"
    assert column.otherwise is not None, f"{column.title}, {row}: no test shows it, and no reason is given"
    return column.otherwise.says


def unused(column: Column, rows: list[str], existing: frozenset[str]) -> list[Claim]:
    """Claims of a column that hold for none of its rows: their test is gone or has another name."""
    return [
        claim
        for claim in column.claims
        if claim.test is not None and not any(claim.test.replace("{row}", row) in existing for row in rows)
    ]


def _named() -> Iterator[str]:
    for columns in (shown.FAMILIES, shown.KINDS, shown.STORAGE, shown.LAYOUTS):
        for column in columns:
            for claim in (*column.claims, *column.instead.values()):
                if claim.test is not None:
                    yield claim.test
