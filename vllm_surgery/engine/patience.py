# SPDX-License-Identifier: Apache-2.0
"""Waiting for an engine that may die meanwhile, or never answer."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any, TypeVar

from vllm_surgery.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Coroutine

DEATH_CHECK_SECONDS = 0.5
"""Between two looks at whether the engine still lives, while it is asked something."""

STEP_VARIABLE = "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS"
"""vLLM's own setting: an engine whose workers take longer for a step of the model is ended by it."""

STEP_SECONDS = 300.0
"""vLLM's default for it."""

Result = TypeVar("Result")


def most_seconds() -> float:
    """The longest that an answer of the workers may take: a step of the model that runs before, and as long again."""
    return 2 * float(os.environ.get(STEP_VARIABLE) or STEP_SECONDS)


async def while_it_lives(client: Any, call: Coroutine[Any, Any, Result], seconds: float | None = None) -> Result:
    """The result of what an engine was asked.

    vLLM waits for ever for an engine that is dead, and for a worker of another machine that is: it hears of no other
    machine's end. Whatever came in meanwhile would wait with it, so the engine is ended, and the server ends as it does
    whenever an engine dies.

    Args:
        client: an ``AsyncLLM``.
        call: what it was asked.
        seconds: after which the engine is ended; None for never.

    Raises:
        EngineError: the engine died, or was ended.
    """
    task = asyncio.ensure_future(call)
    waited = 0.0
    try:
        while not (await asyncio.wait({task}, timeout=DEATH_CHECK_SECONDS))[0]:
            if client.errored:
                raise EngineError("the engine died")
            waited += DEATH_CHECK_SECONDS
            if seconds is not None and waited >= seconds:
                client.shutdown()
                raise EngineError(
                    f"not all workers answered within {seconds:.0f} s, so the engine was ended; "
                    f"{STEP_VARIABLE} is how long a step of theirs may take"
                )
        return task.result()
    finally:
        task.cancel()
