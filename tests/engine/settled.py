# SPDX-License-Identifier: Apache-2.0
"""Engines that start faster where one of this process has been before.

Most of a small engine's start goes into what needs doing once in a process: replacing kernels (see
`tests.engine.circumstances.register_kernels_once`, which is for ranks of their own too); collecting garbage, several
times, among a million objects that stay anyway; and importing vLLM anew, in another process, to look at a model's class.
"""

from __future__ import annotations

import gc
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from unittest.mock import patch

from tests.engine.circumstances import register_kernels_once

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Given, Result = TypeVar("Given"), TypeVar("Result")


def in_turn(work: Callable[[Given], Result], items: Iterable[Given]) -> Iterator[Result]:
    """What `work` gives for each item, of which there must be one; it starts an engine, and leaves none."""
    register_kernels_once()
    first, *rest = items
    yield work(first)
    with settled():
        yield from map(work, rest)


@contextmanager
def settled() -> Iterator[None]:
    """What every engine does again is left out. One has to have run before."""
    from vllm.model_executor.models import registry

    gc.collect()
    gc.freeze()
    with ExitStack() as stack:
        for owner, name, instead in (
            (gc, "freeze", _nothing),  # vLLM's own would keep one engine's objects from being collected.
            (gc, "unfreeze", _nothing),
            (registry, "_run_in_subprocess", _here),
        ):
            if hasattr(owner, name):  # Older vLLMs lack some.
                stack.enter_context(patch.object(owner, name, instead))
        yield


def _nothing() -> None:
    pass


def _here(function: Callable[[], Any]) -> Any:
    return function()
