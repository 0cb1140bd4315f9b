# SPDX-License-Identifier: Apache-2.0
"""The page: what the survey found and what engines were shown to do, as tables."""

from __future__ import annotations

import re
import tempfile
from collections import defaultdict
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING

from tests.benchmarks.markdown import table
from tests.docs.families.checkpoints import KINDS
from tests.docs.families.engines import cell
from tests.docs.families.storage import STORAGE, stored_as
from tests.docs.families.survey import title_of
from tests.engine import shown
from tests.models import LIKE_LLAMA
from vllm_surgery.patch.units import KINDS as KINDS_OF_UNITS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from tests.docs.families.survey import Family
    from tests.engine.shown import Column
    from vllm_surgery.planning.inventory import UnitsFound

PAGE = Path(__file__).parents[3] / "docs" / "families.md"
NO_SUCH = "-"

_INTRODUCTION = """\
# Families and layouts: what is exact, refused, or served

The tests make this page (`make matrix`) and fail when it differs from what they find. A family is a small model with random weights
that transformers itself creates and writes, with the layers, shapes and names of real ones. Of a multimodal model the language model
is edited, and served without images (Gemma 3n's is its text model under the names of the multimodal one, without towers). The experts
that Qwen3-VL-MoE and Qwen3.5-MoE keep in one tensor are stored as on the Hugging Face Hub.

- **An op in a cell** was baked into such a checkpoint, on units of the first and of the last layer that have some. Every weight
  became the original times the gain, in float32, cast to the format that stores it (quantised ones after dequantising, by code that shares
  nothing with the package), and no other byte changed.
- **[1]** and so on refer to the reasons below a table. In the first tables these are the reasons why the missing ops are
  refused.
- **-**: there are no such units, or the tests store none of the family in this kind.
- **yes**: a test with a real engine shows it: tokens and log-probabilities equal, bit for bit, those of a checkpoint that
  the test edited with its own arithmetic. Compared with transformers, and for masks with the router's logit at minus
  infinity, greedy tokens are equal and log-probabilities differ by rounding.
- **kernel alone**: no CPU here serves it. vLLM's Triton kernel for GPUs, by Triton's interpreter, answers with a gain on its scales, to the bit,
  as with that gain on what they scale.
- **refused**, **not run**: with the reason. The tests run on x86 CPUs without AMX, with AVX-512 and without it; nothing here ran
  on a GPU.
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
        *[
            "",
            "## Where gains go",
            "",
            *table(("family", "neurons", "shared", "experts", "inside experts", "masks"), map(_places, families)),
        ],
        *["", "Stored, found and baked as Llama's are, but served in no test:"],
        f"{', '.join(map(title_of, LIKE_LLAMA))}.",
        *["", "Refused:", "", *table(("family", "reason"), without)],
        *["", "## Kinds of checkpoints", "", "### Neurons", "", *_kinds(families, "neurons")],
        *["", "### Neurons of shared experts", "", *_kinds(families, "shared")],
        *["", "### Experts", "", *_kinds(families, "experts")],
        *["", "### Neurons inside experts", "", *_kinds(families, "expert_neurons")],
        *["", "### Files", "", *_storage(existing)],
        *["", "## Served", "", "### Families", "", *_served(families, existing)],
        *["", "### Kinds", "", *_shown("kind", shown.KINDS, _same([*KINDS, *shown.ONLINE]), existing)],
        *["", "### Layouts", "", *_shown("layout", shown.LAYOUTS, shown.LAYOUT_ROWS, existing)],
    ]
    return "\n".join(lines) + "\n"


def _places(family: Family) -> tuple[str, ...]:
    found = {kind: [group for group in family.units if group.kind == kind] for kind in KINDS_OF_UNITS}
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
    """Kinds against families, of which those that are alike share a column; then who they are, and the reasons."""
    notes = _Notes()
    alike: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for family in families:
        cells = tuple(_held(family, word, kind, notes) for word in KINDS)
        if {*cells} != {NO_SUCH}:
            alike[cells].append(family.title)
    letters = dict(zip(ascii_uppercase, alike.values(), strict=False))
    yield from table(["kind", *letters], ([word, *row] for word, *row in zip(KINDS, *alike, strict=True)))
    yield ""
    yield from (f"- {letter}: {'; '.join(titles)}" for letter, titles in letters.items())
    yield from notes.lines()


def _held(family: Family, word: str, kind: str, notes: _Notes) -> str:
    held = family.held.get((word, kind))
    if held is None:
        return NO_SUCH
    marks = sorted({notes.mark(f"where gains go, the tensor {reason}") for reason in held.refused.values()})
    return " ".join(filter(None, [", ".join(held.ops), *marks]))


class _Notes:
    """Reasons that stand below a table, numbered as they come."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def mark(self, reason: str) -> str:
        """What stands in a cell for a reason."""
        return f"[{self._numbers.setdefault(reason, len(self._numbers) + 1)}]"

    def folded(self, says: str) -> str:
        """A cell with a mark in place of its reason."""
        word, _, reason = says.partition(": ")
        return f"{word} {self.mark(reason)}" if reason else word

    def lines(self) -> list[str]:
        return [f"- [{number}] {reason}" for reason, number in self._numbers.items()]


def _storage(existing: frozenset[str]) -> list[str]:
    rows = []
    for way, title in STORAGE.items():
        with tempfile.TemporaryDirectory() as folder:
            offline = stored_as(way, Path(folder))
        rows.append([title, offline, *(cell(column, way, existing) for column in shown.STORAGE)])
    return table(["files", "checked, baked, compared", *(column.title for column in shown.STORAGE)], rows)


def _served(families: Sequence[Family], existing: frozenset[str]) -> list[str]:
    routed = {family.key for family in families if any(group.kind == "experts" for group in family.units)}
    return _shown("family", shown.FAMILIES, {family.key: family.title for family in families}, existing, masked=routed)


def _shown(
    word: str,
    columns: Sequence[Column],
    rows: Mapping[str, str],
    existing: frozenset[str],
    masked: Collection[str] | None = None,
) -> list[str]:
    """A table of claims, with its reasons.

    Args:
        word: what a row is.
        columns: the claims.
        rows: their titles by their keys.
        existing: the ids of the engine's tests.
        masked: the rows that the last column is for; None for all.
    """
    notes, cells = _Notes(), []
    for key, title in rows.items():
        asked = columns if masked is None or key in masked else columns[:-1]
        said = [notes.folded(cell(column, key, existing)) for column in asked]
        cells.append([title, *said, *[NO_SUCH] * (len(columns) - len(asked))])
    lines = table([word, *(column.title for column in columns)], cells)
    return [*lines, "", *reasons] if (reasons := notes.lines()) else lines


def _same(words: Sequence[str]) -> dict[str, str]:
    return {word: word for word in words}
