# SPDX-License-Identifier: Apache-2.0
"""A report as blocks, and what they are in Markdown."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm_surgery.evaluation.report.examples import Example


@dataclass(frozen=True)
class Words:
    """A paragraph, or the points of a list. Stars make bold."""

    text: str
    points: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Table:
    """A table of text."""

    head: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Figure:
    """A drawing.

    Attributes:
        name: of its file.
        svg: its content.
    """

    name: str
    caption: str
    svg: str


@dataclass(frozen=True)
class Examples:
    """Pairs of answers."""

    pairs: list[Example]


ReportBlock: TypeAlias = Words | Table | Figure | Examples


@dataclass(frozen=True)
class Section:
    """A headline and what stands under it."""

    title: str
    blocks: list[ReportBlock]


def markdown(title: str, sections: Sequence[Section]) -> str:
    """The whole page."""
    lines = [f"# {title}", ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        for block in section.blocks:
            lines += [*_lines(block), ""]
    return "\n".join(lines).rstrip() + "\n"


def _lines(block: ReportBlock) -> list[str]:
    if isinstance(block, Words):
        gap = [""] if block.text and block.points else []
        return [*filter(None, [block.text]), *gap, *(f"- {point}" for point in block.points)]
    if isinstance(block, Table):
        return [_row(cells) for cells in [block.head, ["---"] * len(block.head), *block.rows]]
    if isinstance(block, Figure):
        return [f"![{block.caption}]({block.name})", "", block.caption]
    return [line for example in block.pairs for line in _example(example)]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _example(example: Example) -> list[str]:
    lines = [f"**{example.sort}**: {example.prompt} ({example.cell}, seed {example.seed})", ""]
    for side in example.sides:
        lines += [f"{side.arm}: {side.said}", "", "````text", side.before + ("\u00bb" if side.repeats else "")]
        lines[-1] += side.repeats
        lines += ["````", ""]
    return lines
