# SPDX-License-Identifier: Apache-2.0
"""The stored table: what known minor versions of vLLM have of every touch point."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from deploy.touchpoints.sources import SourcesError

if TYPE_CHECKING:
    from deploy.touchpoints.columns import Column

Table: TypeAlias = "dict[str, Column]"
"""A column for each minor version, such as ``0.32``, in order."""

TABLE = Path(__file__).with_name("table.json")


def minor_of(version: str) -> str:
    """The minor version, such as ``0.32``, that a version belongs to.

    Raises:
        SourcesError: it is no version.
    """
    parts = version.split(".")
    if len(parts) < 2 or not all(part.isdecimal() for part in parts[:2]):  # noqa: PLR2004 - major and minor
        raise SourcesError(f"{version} is no version such as 0.32")
    return ".".join(parts[:2])


def newest(table: Table) -> str:
    """The newest minor version of a table."""
    return max(table, key=_order)


def read_table() -> Table:
    """The table, as it is stored."""
    table: Table = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.is_file() else {}
    return table


def write_table(table: Table) -> None:
    """Stores a table, older versions first."""
    ordered = {minor: dict(sorted(table[minor].items())) for minor in sorted(table, key=_order)}
    TABLE.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")


def _order(minor: str) -> tuple[int, ...]:
    return tuple(int(part) for part in minor.split("."))
