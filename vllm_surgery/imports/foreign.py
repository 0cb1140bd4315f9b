# SPDX-License-Identifier: Apache-2.0
"""Reading files that other tools wrote, within bounds: JSON, JSON lines, text. Nothing in them is executed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_surgery.errors import PatchError, UsageError
from vllm_surgery.patch.document import parse_json
from vllm_surgery.regular_files import IS_LFS_POINTER, LFS_POINTER, read_regular

if TYPE_CHECKING:
    from pathlib import Path

    from vllm_surgery.patch.document import Plain

MAX_FOREIGN_BYTES = 16 << 20
"""Of a file that is imported: a ranking of all experts of the largest models known has some 5 MB as JSON."""

MOST_LINES = 100_000
"""Of a file of lines. The largest models known have some 25,000 routed experts in all."""

_LONGEST_HEADER = 100_000_000  # The limit of the safetensors library itself.
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True)
class ForeignFile:
    """A file as it was read.

    Attributes:
        source: what to call it in errors: its path as it was given.
        name: its name, without the folder.
        sha256: of its bytes, in hex.
        values: the JSON values in it, by the line on which each starts: one for JSON, one a line for JSON lines. Empty
            where it is neither.
        lines: its lines of text that aren't empty, with their numbers from 1.
    """

    source: str
    name: str
    sha256: str
    values: dict[int, Plain]
    lines: dict[int, str]

    @property
    def value(self) -> Plain:
        """The only JSON value in it; None where there are several, or none."""
        return next(iter(self.values.values())) if len(self.values) == 1 else None


def read_foreign(path: Path) -> ForeignFile:
    """Reads a file in whatever form somebody's tool wrote it.

    Raises:
        UsageError: there is no such file, or it can't be read.
        PatchError: it is too long, no text, a pickle, a safetensors file, or JSON that isn't sound.
    """
    source = str(path)
    try:
        content = read_regular(path, MAX_FOREIGN_BYTES)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    return parse_foreign(content, source, path.name)


def parse_foreign(content: bytes, source: str, name: str) -> ForeignFile:
    """A file's content, told apart.

    Args:
        content: its bytes, as far as `MAX_FOREIGN_BYTES` and one more.
        source: what to call it in errors.
        name: the file's name.

    Raises:
        PatchError: as `read_foreign`.
    """
    if _is_safetensors(content):
        raise PatchError(
            source,
            "",
            "is a safetensors file, which lists no experts; a patch names a direction in one by the op `project` "
            "(docs/directions.md)",
        )
    if len(content) > MAX_FOREIGN_BYTES:
        raise PatchError(source, "", f"is too long: at most {MAX_FOREIGN_BYTES} bytes (16 MiB) are read")
    if content.startswith(LFS_POINTER):
        raise PatchError(source, "", f"can't be imported: {IS_LFS_POINTER}")
    if content.startswith(_PICKLES):
        raise PatchError(
            source,
            "",
            "is a Python pickle, which can run code when it is read; write what is in it as JSON first, such as by "
            "pandas' to_json(FILE, orient='records')",
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PatchError(source, f"byte {error.start}", "is not UTF-8 text") from None
    lines = {number: line for number, line in enumerate(text.splitlines(), 1) if line.strip()}
    return ForeignFile(source, name, hashlib.sha256(content).hexdigest(), _values(text, lines, source), lines)


def _is_safetensors(content: bytes) -> bool:
    """True if content begins as that format does: with its header's length, in eight bytes, and the header."""
    return content[8:9] == b"{" and 0 < int.from_bytes(content[:8], "little") <= _LONGEST_HEADER


def _values(text: str, lines: dict[int, str], source: str) -> dict[int, Plain]:
    if not text.lstrip().startswith(("{", "[")):
        return {}
    if len(lines) > 1 and all(map(_is_json, list(lines.values())[:2])):
        if len(lines) > MOST_LINES:
            raise PatchError(source, "", f"has {len(lines)} lines; at most {MOST_LINES} are read")
        return {number: parse_json(line, f"{source}, line {number}") for number, line in lines.items()}
    return {1: parse_json(text, source)}


def _is_json(line: str) -> bool:
    """True if a line is a whole JSON object or array by itself."""
    try:
        return isinstance(json.loads(line), dict | list)
    except (ValueError, RecursionError):
        return False
