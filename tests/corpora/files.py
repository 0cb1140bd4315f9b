# SPDX-License-Identifier: Apache-2.0
"""JSON lines, packed, such that the same records give the same bytes."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def read_records(file: Path) -> list[dict[str, Any]]:
    """The records of a packed file."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def write_records(file: Path, records: Iterable[dict[str, Any]]) -> None:
    """Writes a packed file without its name and time in it, which would make every one differ."""
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    file.write_bytes(gzip.compress(text.encode("utf-8"), mtime=0))
