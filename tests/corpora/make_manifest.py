# SPDX-License-Identifier: Apache-2.0
"""Records how many passages each healthy class has and what they hash to, so that a drift is seen.

    python -m tests.corpora.make_manifest

The classes that are read from the environment differ with the versions of Python and of the packages.
"""

from __future__ import annotations

import json
from typing import TypedDict

from tests.corpora.healthy import FROM_THE_ENVIRONMENT, GENERATED, fingerprint, passages_of
from tests.corpora.make_real import DATA

MANIFEST = DATA / "manifest.json"


class Entry(TypedDict):
    """What is recorded of a class."""

    passages: int
    hash: str
    generated: bool


def entry_of(kind: str) -> Entry:
    """What a class is now."""
    texts = [passage.text for passage in passages_of(kind)]
    return {"passages": len(texts), "hash": fingerprint(texts), "generated": kind in GENERATED}


def read_manifest() -> dict[str, Entry]:
    """What was recorded."""
    recorded: dict[str, Entry] = json.loads(MANIFEST.read_text("utf-8"))
    return recorded


def main() -> None:
    entries = {kind: entry_of(kind) for kind in (*FROM_THE_ENVIRONMENT, *GENERATED)}
    MANIFEST.write_text(json.dumps(entries, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
