# SPDX-License-Identifier: Apache-2.0
"""The refusal, before it starts, of a server that can't give each request a patch of its own."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from vllm_surgery.engine.offers import OFFERS
from vllm_surgery.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable

KEYED_CONNECTORS = frozenset({"OffloadingConnector", "SimpleCPUOffloadConnector"})
"""KV connectors that know blocks by vLLM's own hashes, into which a patch's digest goes. Others make keys of their own
from tokens alone, or trust another server to have had the same patch."""

RUST_VARIABLE = "VLLM_USE_RUST_FRONTEND"


def check_support(vllm_config: Any) -> None:
    """Refuses a server on which a request's patch wouldn't be the request's alone.

    Raises:
        EngineError: the reason, in one line.
    """
    OFFERS["slots"].check()
    for reason, hinders in _HINDRANCES.items():
        if hinders(vllm_config):
            raise EngineError(f"no slots for patches: {reason}")


def _foreign_connector(config: Any) -> bool:
    transfer = config.kv_transfer_config
    return transfer is not None and transfer.kv_connector not in KEYED_CONNECTORS


_HINDRANCES: dict[str, Callable[[Any], bool]] = {
    "a pooling model's requests can't carry a choice": lambda config: config.model_config.runner_type == "pooling",
    "dual batch overlap cuts a step's tokens into parts whose requests aren't known": (
        lambda config: bool(config.parallel_config.use_ubatching)
    ),
    "with prefill context parallelism a rank has a part of each request's tokens": (
        lambda config: config.parallel_config.prefill_context_parallel_size > 1
    ),
    "--kv-sharing-fast-prefill leaves tokens out of some layers": (
        lambda config: bool(config.cache_config.kv_sharing_fast_prefill)
    ),
    "elastic expert parallelism builds ranks anew while it serves": (
        lambda config: bool(getattr(config.parallel_config, "enable_elastic_ep", False))
    ),
    "adaptive verification drops tokens after a step is prepared": (
        lambda config: bool(getattr(config.speculative_config, "enable_adaptive_verification", False))
    ),
    "the KV connector doesn't key its blocks by vLLM's hashes, so it would mix patches up": _foreign_connector,
    f"{RUST_VARIABLE} has its own way to the engine, which knows no patches": (
        lambda _: os.environ.get(RUST_VARIABLE, "0") not in {"", "0"}
    ),
}
