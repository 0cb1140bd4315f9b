# SPDX-License-Identifier: Apache-2.0
"""Disclosure: answers name files, never where they are or what stands in them."""

from __future__ import annotations

import re

SEE_LOG = "is refused; the server's log says why"

# Not within a word, a URL or a relative path. A name with a space in it ends the folder that it stands for.
_FOLDERS = re.compile(r"(?<![\w./:~-])/(?:[^\s/'\"]+/)+(?=[^\s/])")


def without_folders(text: str) -> str:
    """`text` with the folders of every absolute path left out."""
    return _FOLDERS.sub("", text)
