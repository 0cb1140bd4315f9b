# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: SIM905  (Long lists of words read best as text.)
"""What is drawn with characters: tables, rules, boxes, bars, trees."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.corpora.healthy.words import CITIES, COLOURS, NOUNS, name, sentence

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random


def markdown_table(random: Random) -> str:
    """A table with its alignment row; wide ones, sparse ones, and ones whose cells are mostly yes and no."""
    columns, rows = random.randrange(2, 17), random.randrange(3, 21)
    align = random.choice(("---", ":---", "---:", ":---:", "-----", ":-:", "----------------"))
    fill = random.choice((_number, _word, _yes_no, _blank))
    head = [random.choice(NOUNS).title() for _ in range(columns)]
    body = [[name(random), *(fill(random) for _ in range(columns - 1))] for _ in range(rows)]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in (head, [align] * columns, *body))
    return f"{sentence(random)}\n\n{table}\n\n{sentence(random)}"


def _number(random: Random) -> str:
    return str(random.randrange(1000))


def _word(random: Random) -> str:
    return random.choice(NOUNS + COLOURS)


def _yes_no(random: Random) -> str:
    return random.choice(("yes", "no", "yes", "n/a"))


def _blank(random: Random) -> str:
    return random.choice(("", "", "", "x"))


def grid_table(random: Random) -> str:
    """A table in the way of reStructuredText or of a database's shell, a rule after every row or after the head."""
    columns, rows = random.randrange(2, 8), random.randrange(3, 13)
    body = [[_word(random)[:10].ljust(10) for _ in range(columns)] for _ in range(rows)]
    rule = "+" + "+".join(["-" * 12] * columns) + "+"
    lines = ["| " + " | ".join(row) + " |" for row in body]
    if random.random() < 0.5:
        return "\n".join([rule, lines[0], rule, *lines[1:], rule])
    return "\n".join([rule, *(text for line in lines for text in (line, rule))])


def rules(random: Random) -> str:
    """Sections under rules of one character, up to 120 wide."""
    mark, width = random.choice("=-*_~#.+"), random.choice((20, 40, 60, 78, 80, 100, 120))
    parts = []
    for _ in range(random.randrange(3, 9)):
        parts += [mark * width, name(random).center(width) if random.random() < 0.3 else name(random), mark * width]
        parts += [sentence(random) for _ in range(random.randrange(1, 4))]
    return "\n".join(parts)


def box(random: Random) -> str:
    """Text or nothing in a frame, or a maze or a board."""
    width, height = random.randrange(12, 50), random.randrange(4, 12)
    style = random.randrange(3)
    if style == 0:
        inner = [" " * width if random.random() < 0.5 else name(random)[:width].center(width) for _ in range(height)]
        return "\n".join(["+" + "-" * width + "+", *(f"|{line}|" for line in inner), "+" + "-" * width + "+"])
    if style == 1:
        return "\n".join("".join(random.choice("##   ") for _ in range(width)) for _ in range(height))
    board = [[random.choice(". . . x o".split()) for _ in range(8)] for _ in range(8)]
    return "\n".join(f"{8 - place} {' '.join(row)}" for place, row in enumerate(board)) + "\n  a b c d e f g h"


def shape(random: Random) -> str:
    """A triangle, a diamond or a filled block of one character."""
    size, mark = random.randrange(4, 13), random.choice("*#xo@")
    style = random.randrange(3)
    if style == 0:
        return "\n".join(mark * place for place in range(1, size + 1))
    if style == 1:
        half = [" " * (size - place) + mark * (2 * place - 1) for place in range(1, size + 1)]
        return "\n".join(half + half[-2::-1])
    return "\n".join([mark * size] * min(size, 6))


def bars(random: Random) -> str:
    """A bar chart, or a progress bar that was printed again and again."""
    if random.random() < 0.5:
        rows = [(random.choice(CITIES), random.randrange(1, 50)) for _ in range(random.randrange(5, 20))]
        return "\n".join(f"{city:<14} | {'#' * count} {count}" for city, count in rows)
    steps = random.randrange(8, 25)
    lines = [f"{100 * at // steps:>3}%|{'█' * (20 * at // steps):<20}| {at}/{steps}" for at in range(steps + 1)]
    return "\n".join(lines)


def tree(random: Random) -> str:
    """A listing of folders and files."""
    lines = ["."]
    for _ in range(random.randrange(3, 8)):
        lines.append(f"├── {random.choice(NOUNS)}")
        lines += [f"│   ├── {random.choice(NOUNS)}_{random.randrange(30)}.py" for _ in range(random.randrange(1, 7))]
        lines.append("│   └── __init__.py")
    return "\n".join([*lines, "└── README.md"])


def contents(random: Random) -> str:
    """A table of contents with leaders."""
    page, lines = 1, []
    for chapter in range(1, random.randrange(6, 20)):
        page += random.randrange(2, 30)
        lines.append(f"{chapter}. {name(random)} ".ljust(random.choice((40, 60)), ".") + f" {page}")
    return "\n".join(lines)


def ascii_art(random: Random) -> str:
    """One of the drawings."""
    return random.choice((rules, box, shape, bars, tree, contents))(random)


CLASSES: dict[str, tuple[int, Callable[[Random], str]]] = {
    "markdown-tables": (300, markdown_table),
    "grid-tables": (100, grid_table),
    "ascii-art": (300, ascii_art),
}
