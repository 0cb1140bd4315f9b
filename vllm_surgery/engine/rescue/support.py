# SPDX-License-Identifier: Apache-2.0
"""Whether a server can rescue answers, found out before it starts."""

from __future__ import annotations

from typing import Any

from vllm_surgery.engine.offers import OFFERS
from vllm_surgery.errors import EngineError


def check_rescue(vllm_config: Any) -> None:
    """Refuses a server that couldn't rescue as it is asked to.

    Raises:
        EngineError: this vLLM lacks a touch point, or the model generates nothing.
    """
    OFFERS["rescue"].check()
    if vllm_config.model_config.runner_type == "pooling":
        raise EngineError("on_loop: a pooling model's requests have no answers that could loop")
