# SPDX-License-Identifier: Apache-2.0
"""The page: every architecture with its verdict, those that are alike in one row."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from tests.benchmarks.markdown import table
from tests.docs.registry.source import registered
from tests.docs.registry.verdict import IN_PART, INSIDE, NONE, REFUSED, ROW, Verdict, verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

PAGE = Path(__file__).parents[3] / "docs" / "registry.md"

_INTRODUCTION = """\
# vLLM's architectures, and which are known

`make registry` makes this page from the source of the installed vLLM, and a test fails when they differ: a new vLLM's new classes show up there.
No model is loaded for it. A class is followed through the classes that it names and inherits from, towers for pictures and sound left aside; what its
gated MLPs and routed experts are called there is held against the package's own table of names (`vllm_surgery/model/conventions.py`).

- **row**: the table knows the names, so neurons, shared experts and routed experts can be edited. Which of these were *served* in tests is in
  [Families and layouts](families.md); the others follow by their names.
- **in part**: it knows some; patches of the other units are refused, by the name of what isn't there.
- **refused**: it knows none; every patch is, with the reason.
- **its language model's**: it makes whatever language model its config names, which is one of the others.
- **none**: no gated MLP and no routed experts are found where its classes lead.

A checkpoint may call its tensors otherwise than vLLM's classes do; `vllm-surgery doctor --model DIR` says what is found in one.
"""


def verdicts() -> dict[str, Verdict]:
    """By architecture."""
    return {architecture: verdict(architecture, name) for architecture, name in sorted(registered().items())}


def page(found: Mapping[str, Verdict]) -> str:
    """The whole page."""
    counts = Counter(each.word for each in found.values())
    alike: dict[Verdict, list[str]] = defaultdict(list)
    for architecture, each in found.items():
        alike[each].append(architecture)
    lines = [*_INTRODUCTION.splitlines(), ""]
    lines += [f"Of {len(found)} architectures: {', '.join(f'{counts[word]} {word}' for word in _WORDS)}.", ""]
    for word in _WORDS:
        groups = [(each, names) for each, names in alike.items() if each.word == word]
        lines += [f"## {word.capitalize()}", ""]
        if word in {INSIDE, NONE}:
            lines += [", ".join(name for _, names in groups for name in names), ""]
        else:
            lines += [*table(("architectures", "known", "not known"), [_row(*group) for group in groups]), ""]
    return "\n".join(lines).rstrip() + "\n"


_WORDS = (ROW, IN_PART, REFUSED, INSIDE, NONE)


def _row(each: Verdict, names: list[str]) -> tuple[str, str, str]:
    unknown = [f"`{name}`" for name in each.unknown] + [f"names that begin with `{root}`" for root in each.roots]
    return ", ".join(names), ", ".join(f"`{name}`" for name in each.known) or "-", ", ".join(unknown) or "-"
