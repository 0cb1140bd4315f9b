# SPDX-License-Identifier: Apache-2.0
"""Records of answers: a line of JSON each, written as they come, so that a killed trial goes on."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple, TypeAlias

from vllm_surgery.errors import UsageError
from vllm_surgery.regular_files import open_regular

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from vllm_surgery.loops import Loop


Way: TypeAlias = Literal["slot", "swap"]


class Key(NamedTuple):
    """The identity of an answer. `seed` tells the answers to one probe apart."""

    arm: str
    cell: str
    set: str
    probe: str
    seed: int


@dataclass(frozen=True)
class FoundLoop:
    """A loop in an answer.

    Attributes:
        start: the character of the answer's text at which it begins.
        first_copy: the character at which what repeats begins for the second time.
    """

    kind: str
    onset: int
    period: int
    copies: float
    end: int
    outcome: str
    start: int
    first_copy: int

    @classmethod
    def of(cls, loop: Loop, offsets: list[int]) -> FoundLoop:
        """A detector's loop. `offsets` are the characters at which tokens begin, and where the last one ends."""
        again = min(loop.onset + loop.period, len(offsets) - 1)
        place = (offsets[loop.onset], offsets[again])
        return cls(loop.kind, loop.onset, loop.period, round(loop.copies, 2), loop.end, loop.outcome, *place)


@dataclass(frozen=True)
class Record:
    """One answer, and all that is needed to ask for it again.

    Attributes:
        patch: id of the patch set that the server served with.
        sampling: as the request said it.
        finish: the server's word: ``stop`` where the model ended it, ``length`` where the budget did.
        loops: what the detectors found in `token_ids`.
        way: how the arm's patch came to it: in a slot, beside other arms in one batch, or swapped in; None where nobody
            chose, such as on another server, or where it wasn't noted.
    """

    key: Key
    patch: str | None
    prompt: str
    sampling: dict[str, Any]
    text: str
    token_ids: list[int]
    finish: str
    loops: list[FoundLoop] = field(default_factory=list)
    way: Way | None = None

    def to_data(self) -> dict[str, Any]:
        """Plain data: the line in the file."""
        return {**self.key._asdict(), **{name: value for name, value in asdict(self).items() if name != "key"}}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Record:
        """The record whose `to_data` this is."""
        rest = {name: value for name, value in data.items() if name not in Key._fields}
        loops = [FoundLoop(**loop) for loop in rest.pop("loops")]
        return cls(Key(*(data[name] for name in Key._fields)), loops=loops, **rest)


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The objects in a file of JSON lines; none where there is no file.

    A part of a line at the end is left out: a kill left it, or somebody is writing it.

    Raises:
        UsageError: another line isn't JSON, or it can't be read.
    """
    content = _content(file)
    if content is None:
        return []
    with _told_as_of(file):
        return [json.loads(line) for line in content[: _end_of_lines(content)].splitlines()]


def read_state(file: Path) -> Any:
    """What a file of JSON holds; None where there is no file.

    Raises:
        UsageError: it isn't JSON, or it can't be read.
    """
    content = _content(file)
    with _told_as_of(file):
        return None if content is None else json.loads(content)


def _content(file: Path) -> bytes | None:
    try:
        with open_regular(file) as stream:
            return stream.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror or error}") from None


@contextmanager
def _told_as_of(file: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file}: not a file of a trial: {error}") from None


def append_lines(file: Path, items: Iterable[Mapping[str, Any]]) -> None:
    """Writes objects at the end of a file, and waits until the disk has them.

    A part of a line that a kill left there is cut off. So nobody else may write into the file meanwhile; reading it
    does no harm.
    """
    lines = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items).encode()
    with file.open("a+b") as stream:
        _cut_part_of_line(stream)
        stream.write(lines)
        stream.flush()
        os.fsync(stream.fileno())


def _end_of_lines(content: bytes) -> int:
    """The place behind the last whole line."""
    return content.rfind(b"\n") + 1


def _cut_part_of_line(stream: BinaryIO) -> None:
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - 1))
    if stream.read(1) not in {b"", b"\n"}:
        stream.seek(0)
        stream.truncate(_end_of_lines(stream.read()))
