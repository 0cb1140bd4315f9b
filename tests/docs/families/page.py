# SPDX-License-Identifier: Apache-2.0
"""The page: what the survey found and what engines were shown to do, as tables."""

from __future__ import annotations

import re
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from tests.benchmarks.markdown import table
from tests.docs.families.checkpoints import KINDS
from tests.docs.families.engines import cell
from tests.docs.families.storage import STORAGE, stored_as
from tests.engine import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.docs.families.survey import Family
    from tests.engine.shown import Column
    from vllm_surgery.inventory import UnitsFound

PAGE = Path(__file__).parents[3] / "docs" / "families.md"
NO_SUCH = "-"

_INTRODUCTION = """\
# Families, checkpoints, layouts: what is exact, what is refused, what was served

Made by the tests (`make matrix`), which fail when it says anything else than what they find. A family is a small model
with random weights that transformers itself makes and writes, in the sizes and with the names of real ones.

- **An op stands in a cell** where it was baked into such a checkpoint, on units of the first and of the last layer that
  have some, and every weight came to the original times the gain, rounded once to what stores it (quantised ones after
  dequantising, by code that shares nothing with the package), with no other byte changed.
- **[1]** and so on: the ops that are missing are refused, with this reason.
- **-**: there are no such units, or no checkpoints of the family in this kind.
- **yes**: a test of a real engine has it: tokens and log-probabilities equal, bit for bit, to those of a checkpoint that
  the test edited by its own arithmetic; masks to the probabilities of transformers with the logit at minus infinity.
- **refused**, **not run here**: with the reason. Tests run on a CPU; nothing here ran on a GPU.
"""


def page(families: Sequence[Family], without: Sequence[tuple[str, str]], existing: frozenset[str]) -> str:
    """The whole page.

    Args:
        families: the survey.
        without: families that can't be edited, and the reason that a plan gives.
        existing: the ids of the engine's tests.
    """
    lines = [
        *_INTRODUCTION.splitlines(),
        *["", "## Where gains go", "", *table(("family", "neurons", "experts", "masks"), map(_places, families))],
        *["", "Refused, layer by layer:", "", *table(("family", "reason"), without)],
        *["", "## Kinds of checkpoints", "", "### Neurons", "", *_kinds(families, "neurons")],
        *["", "### Experts", "", *_kinds(families, "experts")],
        *["", "### Files", "", *_storage(existing)],
        *["", "## Served", "", "### Families", "", *_served(families, existing)],
        *["", "### Kinds", "", *_by(shown.KINDS, {word: word for word in (*KINDS, *shown.ONLINE)}, existing, "kind")],
        *["", "### Layouts", "", *_by(shown.LAYOUTS, shown.LAYOUT_ROWS, existing, "layout")],
    ]
    return "\n".join(lines) + "\n"


def _places(family: Family) -> tuple[str, ...]:
    found = {kind: [group for group in family.units if group.kind == kind] for kind in ("neurons", "experts")}
    masked = {_mask(group) for group in found["experts"] if "mask" in group.ops}
    return family.title, *(_tensors(groups) for groups in found.values()), " or ".join(sorted(masked)) or NO_SUCH


def _tensors(groups: list[UnitsFound]) -> str:
    names = {_short(name) for group in groups for name in group.tensors}
    return " and ".join(f"`{name}`" for name in sorted(names)) or NO_SUCH


def _short(name: str) -> str:
    return re.sub(r"^.*\.layers\.\*\.", "", name)


def _mask(group: UnitsFound) -> str:
    return "while serving" if group.masked_by is None else f"`{_short(group.masked_by)}`"


def _kinds(families: Sequence[Family], kind: str) -> Iterator[str]:
    """Kinds against families, of which those that are alike share a column; then the reasons."""
    reasons: dict[str, int] = {}
    alike: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for family in families:
        cells = tuple(_held(family, word, kind, reasons) for word in KINDS)
        if {*cells} != {NO_SUCH}:
            alike[cells].append(family.title)
    head = ["kind", *("; ".join(titles) for titles in alike.values())]
    yield from table(head, ([word, *row] for word, *row in zip(KINDS, *alike, strict=True)))
    yield ""
    yield from (f"- [{number}] {reason}" for reason, number in reasons.items())


def _held(family: Family, word: str, kind: str, reasons: dict[str, int]) -> str:
    held = family.held.get((word, kind))
    if held is None:
        return NO_SUCH
    notes = sorted({reasons.setdefault(f"its tensor {reason}", len(reasons) + 1) for reason in held.refused.values()})
    return " ".join([", ".join(held.ops), *(f"[{number}]" for number in notes)])


def _storage(existing: frozenset[str]) -> list[str]:
    rows = []
    for way, title in STORAGE.items():
        with tempfile.TemporaryDirectory() as folder:
            rows.append(
                [title, stored_as(way, Path(folder)), *(cell(column, way, existing) for column in shown.STORAGE)]
            )
    return table(["files", "checked, baked, compared", *(column.title for column in shown.STORAGE)], rows)


def _served(families: Sequence[Family], existing: frozenset[str]) -> list[str]:
    *columns, masks = shown.FAMILIES
    rows = [
        [
            family.title,
            *(cell(column, family.key, existing) for column in columns),
            cell(masks, family.key, existing) if any(group.kind == "experts" for group in family.units) else NO_SUCH,
        ]
        for family in families
    ]
    return table(["family", *(column.title for column in shown.FAMILIES)], rows)


def _by(columns: Sequence[Column], rows: dict[str, str], existing: frozenset[str], word: str) -> list[str]:
    cells = ([title, *(cell(column, key, existing) for column in columns)] for key, title in rows.items())
    return table([word, *(column.title for column in columns)], cells)
