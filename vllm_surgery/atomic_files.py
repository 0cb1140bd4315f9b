# SPDX-License-Identifier: Apache-2.0
"""Folders and files that are written aside and renamed at the end, so that they are there whole or not at all."""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import stat
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from vllm_surgery.errors import SurgeryError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOCK = "lock"
"""Beside an unfinished folder, and locked for as long as its process lives."""


def check_target(out: Path, source: Path, why: str) -> None:
    """Refuses a place where nothing may be written.

    Args:
        out: where a folder is to be written.
        source: the model's folder that it is made from.
        why: what a user may not know who writes into it, such as ``a bake is a copy``.

    Raises:
        UsageError: `out` is there already and not an empty folder, or lies in `source`.
        SurgeryError: it can't be looked at.
    """
    with _refused_by_the_system(out):
        if source.resolve() in (out.resolve(), *out.resolve().parents):
            raise UsageError(f"{out}: lies in the model's own folder; {why}")
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise UsageError(f"{out}: already exists")


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """An empty folder, hidden beside `out`, that takes its name when the block ends well and is gone when it doesn't.

    Folders above `out` that it makes are gone then too. What a killed process has left behind is cleared by the next
    that writes to the same place.

    Raises:
        SurgeryError: it can't be written, inside the block or at its end.
    """
    with _refused_by_the_system(out), _parents_of(out):
        prefix = f".{out.name}.unfinished-"
        _clear_left_behind(out.parent, prefix)
        with (
            tempfile.TemporaryDirectory(prefix=prefix, dir=out.parent) as work,
            _locked(Path(work) / _LOCK),
        ):
            folder = Path(work) / "folder"
            folder.mkdir()
            yield folder
            folder.rename(out)


@contextmanager
def atomic_file(out: Path) -> Iterator[Path]:
    """A file, hidden beside `out`, that takes its place when the block ends well and is gone when it doesn't.

    Raises:
        SurgeryError: it can't be written, inside the block or at its end.
    """
    with _refused_by_the_system(out):
        prefix = f".{out.name}.unfinished-"
        _clear_left_behind(out.parent, prefix)
        with tempfile.TemporaryDirectory(prefix=prefix, dir=out.parent) as work, _locked(Path(work) / _LOCK):
            file = Path(work) / "file"
            yield file
            file.rename(out)


@contextmanager
def _parents_of(out: Path) -> Iterator[None]:
    """Makes the folders above `out`; removes those that it made if the block fails."""
    missing = [parent for parent in out.parents if not parent.exists()]
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for parent in missing:
            with suppress(OSError):  # Somebody else uses it by now.
                parent.rmdir()
        raise


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Holds a lock on a file that it makes, by which others see that this process lives."""
    with file.open("wb") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _clear_left_behind(parent: Path, prefix: str) -> None:
    for left in parent.glob(f"{glob.escape(prefix)}*"):
        with suppress(OSError), (left / _LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # Fails where its process lives.
            shutil.rmtree(left, ignore_errors=True)


def atomic_write(file: Path, content: str) -> None:
    """Writes a file of text that is either all there or as it was, with the mode that it had.

    A symbolic link stays, and what it leads to is written. A device or a pipe stays too, and is given the content.

    Raises:
        OSError: it can't be written.
    """
    atomic_write_bytes(file, content.encode())


def atomic_write_bytes(file: Path, content: bytes) -> None:
    """The same for any content.

    Raises:
        OSError: it can't be written.
    """
    if _is_stream(file):
        with file.open("wb") as stream:
            stream.write(content)
        return
    file = Path(os.path.realpath(file))
    with tempfile.NamedTemporaryFile("wb", dir=file.parent, prefix=f".{file.name}-", delete=False) as aside:
        path = Path(aside.name)
        try:
            aside.write(content)
            aside.flush()
            path.chmod(file.stat().st_mode & 0o777 if file.exists() else 0o644)
            path.replace(file)
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def _is_stream(file: Path) -> bool:
    """True for what can't be replaced, only written to: for ``/dev/null`` nobody wants a file of that name."""
    try:
        mode = file.stat().st_mode
    except FileNotFoundError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


@contextmanager
def _refused_by_the_system(out: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        # A circle of links is the second of these before Python 3.13.
        if not isinstance(error, OSError) and "loop" not in str(error):
            raise
        reason = getattr(error, "strerror", None) or error
        raise SurgeryError(f"{out}: can't be written: {reason}; nothing was left behind") from None


@contextmanager
def locked_folder(folder: Path, why: str) -> Iterator[None]:
    """Keeps a folder, which is made where it isn't there, for this process alone.

    Args:
        folder: which.
        why: it may be somebody else's.

    Raises:
        UsageError: another process has it, or it can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("wb")
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror or error}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(f"{folder}: {why}") from None
        _held.add(lock)
        try:
            yield
        finally:
            _held.discard(lock)


_held: set[BinaryIO] = set()
"""The locks of this process."""


def _let_go() -> None:
    """In a forked child, which would keep its parent's locks when that is killed: an engine's processes outlive it."""
    for lock in _held:
        lock.close()
    _held.clear()


os.register_at_fork(after_in_child=_let_go)
