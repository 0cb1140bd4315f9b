# SPDX-License-Identifier: Apache-2.0
"""Reading files that others may have put there: regular files alone, and never more than a bound.

A pipe in a file's place would let its reader wait for ever, a device would feed it without end.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, BinaryIO, cast

if TYPE_CHECKING:
    from pathlib import Path


LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""The beginning of the little text that stands for a file which Git LFS keeps elsewhere:
https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md"""

IS_LFS_POINTER = "it is a Git LFS pointer; `git lfs pull` fetches the file that it stands for"


def open_regular(path: Path, *, follow: bool = True) -> BinaryIO:
    """Opens a file for reading, unbuffered. Never waits.

    Args:
        path: of the file.
        follow: whether it may be a symbolic link.

    Raises:
        OSError: there is none, it can't be read, or it is no regular file.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    descriptor = os.open(path, flags)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "is not a regular file", str(path))
        return cast("BinaryIO", os.fdopen(descriptor, "rb", buffering=0))
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path, most: int, *, follow: bool = True) -> bytes:
    """The first bytes of a file, `most` and one at most, so that a longer one is known by its length.

    Raises:
        OSError: as `open_regular`.
    """
    with open_regular(path, follow=follow) as file:
        content = bytearray()
        while chunk := file.read(most + 1 - len(content)):
            content += chunk
        return bytes(content)
