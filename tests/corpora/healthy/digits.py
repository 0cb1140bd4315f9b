# SPDX-License-Identifier: Apache-2.0
"""Encodings: text that looks random, and rows of the same figure that look like a loop."""

from __future__ import annotations

import base64
import json
import textwrap
import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random


def base64_text(random: Random) -> str:
    """A key or a file in base64, in lines of 64 or in one; some of it zeros, as in an image."""
    data = random.randbytes(random.randrange(120, 600))
    if random.random() < 0.2:
        data = data[:40] + bytes(random.randrange(10, 40)) + data[40:]
    text = base64.b64encode(data).decode()
    return text if random.random() < 0.3 else "\n".join(textwrap.wrap(text, random.choice((64, 76))))


def hex_dump(random: Random) -> str:
    """As `xxd` prints it, with runs of zeros."""
    data = bytearray(random.randbytes(16 * random.randrange(8, 25)))
    if random.random() < 0.4:
        start = random.randrange(len(data) - 64)
        data[start : start + random.randrange(8, 48)] = bytes(8)
    lines = []
    for place in range(0, len(data), 16):
        row = bytes(data[place : place + 16])
        pairs = " ".join(row[at : at + 2].hex() for at in range(0, len(row), 2))
        lines.append(f"{place:08x}: {pairs:<39}  {''.join(chr(b) if 32 <= b < 127 else '.' for b in row)}")
    return "\n".join(lines)


def uuids(random: Random) -> str:
    """A list of UUIDs, plain, numbered, or in a JSON array."""
    made = [str(uuid.UUID(int=random.getrandbits(128), version=4)) for _ in range(random.randrange(8, 25))]
    style = random.randrange(4)
    if style == 0:
        return json.dumps(made, indent=2)
    if style == 1:
        return "\n".join(f"{place}. {one}" for place, one in enumerate(made, start=1))
    return ("\n" if style == 2 else ", ").join(made)


def dna(random: Random) -> str:
    """A sequence in FASTA or in blocks of ten, sometimes with a short microsatellite."""
    bases = "".join(random.choice("ACGT") for _ in range(random.randrange(200, 900)))
    if random.random() < 0.3:
        at = random.randrange(len(bases))
        bases = bases[:at] + random.choice(("CA", "GATA", "CAG")) * random.randrange(4, 13) + bases[at:]
    if random.random() < 0.5:
        return f">seq{random.randrange(1000)} Homo sapiens\n" + "\n".join(textwrap.wrap(bases, 60))
    blocks = textwrap.wrap(bases.lower(), 10)
    rows = [blocks[at : at + 6] for at in range(0, len(blocks), 6)]
    return "\n".join(f"{60 * place + 1:>9} {' '.join(row)}" for place, row in enumerate(rows))


def zeros(random: Random) -> str:
    """Rows and matrices of one figure, as JSON, NumPy, C and plain text have them, within text about them."""
    cell = random.choice(("0", "0", "0", "0.0", "1", "0.00", "null", "false"))
    shape = random.choice(((1, random.randrange(6, 41)), (random.randrange(2, 11), random.randrange(2, 11))))
    rows = [[cell] * shape[1] for _ in range(shape[0])]
    if random.random() < 0.3:
        rows[random.randrange(shape[0])][random.randrange(shape[1])] = "1"
    before, after = random.choice(_AROUND_ZEROS)
    return before + random.choice(_MATRICES)(rows) + after


_MATRICES: tuple[Callable[[list[list[str]]], str], ...] = (
    lambda rows: "[" + ", ".join("[" + ", ".join(row) + "]" for row in rows) + "]",
    lambda rows: "[\n" + ",\n".join("  [" + ", ".join(row) + "]" for row in rows) + "\n]",
    lambda rows: "[[" + "]\n [".join(" ".join(row) for row in rows) + "]]",
    lambda rows: "{\n" + ",\n".join("    {" + ", ".join(row) + "}" for row in rows) + "\n};",
    lambda rows: "\n".join(" ".join(row) for row in rows),
    lambda rows: "[\n" + ",\n".join("  " + cell for row in rows for cell in row[:3]) + "\n]",
)
_AROUND_ZEROS = (
    ("The matrix starts empty:\n\n", "\n\nEach step fills one of its cells, from the top left to the bottom right."),
    ('{"name": "grid", "cells": ', ', "done": false}'),
    ("grid = ", "\nfor row in grid:\n    print(row)\n"),
    ("static const int table[][16] = ", "\n\nint main(void) { return table[0][0]; }"),
    ("", ""),
)

CLASSES: dict[str, tuple[int, Callable[[Random], str]]] = {
    "base64": (200, base64_text),
    "hex-dumps": (150, hex_dump),
    "uuids": (120, uuids),
    "dna": (120, dna),
    "zeros": (300, zeros),
}
