# SPDX-License-Identifier: Apache-2.0
"""One answer with a loop, as text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["verbatim", "decay", "collapse", "doom"]


@dataclass(frozen=True)
class TextLoop:
    """An answer in three parts.

    Attributes:
        kinds: what a reader may call it; any of them counts as found.
        before: what is sound.
        loop: what loops.
        after: what follows; empty where the answer is cut in the loop.
    """

    kinds: tuple[Kind, ...]
    before: str
    loop: str
    after: str = ""

    @property
    def text(self) -> str:
        """The whole answer."""
        return self.before + self.loop + self.after
