# SPDX-License-Identifier: Apache-2.0
"""Factory of the detectors of each request, from a table of the tokenizer's tokens that is made once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from vllm_surgery.engine.server_config import logger
from vllm_surgery.loops import TokenTable, Watcher

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future


def compile_beside() -> None:
    """Compiles the detectors' kernels in a thread, which the first start after an installation takes seconds for."""
    _in_a_thread(_prepare, None)


class Detectors:
    """Factory of detectors. The table is made while the server starts; the first request waits for what is missing.

    Args:
        tokenizer: of the served model; None where vLLM was told to do without, so that only verbatim loops are found.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._table = _in_a_thread(_prepare, tokenizer)

    def new(self) -> Watcher:
        """Creates the detectors of a new request."""
        return Watcher(self._table.result())

    def text(self, token_ids: Sequence[int]) -> str:
        """Their text, for people; empty without a tokenizer."""
        table = self._table.result()
        return "" if table is None else table.text(token_ids)


def _in_a_thread(prepare: Callable[[Any], TokenTable | None], tokenizer: Any) -> Future[TokenTable | None]:
    threads = ThreadPoolExecutor(1, "vllm-surgery-detectors")
    try:
        return threads.submit(prepare, tokenizer)
    finally:
        threads.shutdown(wait=False)


def _prepare(tokenizer: Any) -> TokenTable | None:
    table = None if tokenizer is None else _table_of(tokenizer)
    # Enough tokens for every kernel to be compiled now, not while somebody waits for an answer.
    Watcher(table or TokenTable([""])).feed([0] * 64)
    return table


def _table_of(tokenizer: Any) -> TokenTable | None:
    try:
        return TokenTable.from_tokenizer(tokenizer)
    except Exception as error:
        logger.warning(
            "vllm-surgery: %s can't be read token by token (%s: %s), so only verbatim loops are looked for",
            type(tokenizer).__name__,
            type(error).__name__,
            error,
        )
        return None
