# SPDX-License-Identifier: Apache-2.0
"""The tokens of a tokenizer as text, in the form that the scanner reads."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from vllm_surgery.loops.kernels import Integers, integers
from vllm_surgery.loops.pieces import pieces_of, utf8

if TYPE_CHECKING:
    from collections.abc import Sequence


class TokenTable:
    """The bytes of a tokenizer's tokens; made once, shared by all requests, never changed.

    Args:
        pieces: the text of each token, by its id; empty for special tokens. Bytes where a token may hold a part of a
            character.

    Attributes:
        size: number of tokens.
        data: the bytes of all tokens, one after another.
        starts: where each token's bytes begin; one more, where the last ones end.
    """

    def __init__(self, pieces: Sequence[str | bytes]) -> None:
        self.size = len(pieces)
        self._pieces = [utf8(piece) for piece in pieces]
        self.data: Integers = integers(np.frombuffer(b"".join(self._pieces) or b"\0", np.uint8), np.uint8)
        ends = accumulate(map(len, self._pieces), initial=0)
        self.starts: Integers = integers(np.fromiter(ends, np.int64, self.size + 1))

    @classmethod
    def from_tokenizer(cls, tokenizer: Any) -> TokenTable:
        """The table of a Hugging Face tokenizer, or of any that has a length and its `convert_ids_to_tokens`."""
        return cls(pieces_of(tokenizer))

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of `token_ids`, for people."""
        data = b"".join(self._pieces[token] for token in token_ids if 0 <= token < self.size)
        return data.decode("utf-8", errors="replace")
