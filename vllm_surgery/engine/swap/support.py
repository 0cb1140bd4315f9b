# SPDX-License-Identifier: Apache-2.0
"""Check, when a server starts, whether it can swap patches while it serves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm_surgery.engine import touchpoints
from vllm_surgery.engine.offers import OFFERS
from vllm_surgery.engine.server_config import logger
from vllm_surgery.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable


def why_not(vllm_config: Any, streamed: bool) -> str | None:
    """Reason why this server can't swap; None where it can.

    Args:
        vllm_config: of the server.
        streamed: whether its weights came from a checkpoint, tensor by tensor.
    """
    if not streamed:
        return f"--load-format {vllm_config.load_config.load_format} doesn't read a checkpoint tensor by tensor"
    for reason, hinders in _HINDRANCES.items():
        if hinders(vllm_config):
            return reason
    try:
        OFFERS["swap"].check()
    except EngineError as error:
        logger.warning("vllm-surgery: patches can't be swapped: %s", error)
        return str(error)
    return None


def _offloads(config: Any) -> bool:
    offload = getattr(config, "offload_config", None)
    places = (getattr(offload, "uva", None), getattr(offload, "prefetch", None), config.cache_config)
    return any(getattr(place, "cpu_offload_gb", 0) or getattr(place, "offload_group_size", 0) for place in places)


_HINDRANCES: dict[str, Callable[[Any], bool]] = {
    "EPLB moves experts while it serves, and vLLM's loader doesn't follow them": (
        lambda config: bool(config.parallel_config.enable_eplb)
    ),
    "elastic expert parallelism builds engines anew while it serves": (
        lambda config: bool(getattr(config.parallel_config, "enable_elastic_ep", False))
    ),
    "this vLLM can't ask every engine of a data-parallel server; 0.32 can": (
        lambda config: config.parallel_config.data_parallel_size > 1 and not touchpoints.CALL_ALL_ENGINES.there
    ),
    "weights are offloaded to the CPU, where vLLM's layerwise reload can't write them": _offloads,
    "the model is quantised, and swaps are only known to be exact for weights that are not": (
        lambda config: config.model_config.quantization is not None
    ),
    "a KV connector shares caches with other servers, which a swap here doesn't clear": (
        lambda config: config.kv_transfer_config is not None
    ),
}
