# SPDX-License-Identifier: Apache-2.0
"""The key of vLLM's compile cache, without patches in it.

Everything in `additional_config` is part of that key, but a patch changes numbers, not the graph: without this, every
edit of a patch file would cost a whole compilation. What does change the graph is that a router looks up its masks, so
the layers in which it may are left in the key; which experts are masked there isn't. So are slots: every layer looks up
its gains in a table with a row for each.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from vllm_surgery.engine import touchpoints
from vllm_surgery.engine.masks.model import compiles
from vllm_surgery.engine.settings import KEY, Settings
from vllm_surgery.errors import EngineError, SurgeryError
from vllm_surgery.patch.units import MASK

if TYPE_CHECKING:
    from collections.abc import Callable


def _graph(additional_config: dict[str, Any]) -> dict[str, Any]:
    """The part of our settings that shows in the compiled graph; empty for most."""
    try:
        settings = Settings.of(additional_config)
        layers = sorted({item.layer for item in settings.load().assignments() if item.gain == MASK})
    except SurgeryError:  # The start is refused for it, in better words, before anything is compiled.
        return {}
    if settings.slots:  # All layers look their gains up, and no patch is in the weights.
        return {f"{KEY}.slots": settings.slots, f"{KEY}.masks": "all" if settings.mask_buffers else []}
    masks = "all" if settings.mask_buffers else layers
    return {f"{KEY}.masks": masks} if masks else {}


def check_compile_cache(vllm_config: Any) -> None:
    """Refuses a server whose compiled code may be taken from one that looks up masks or slots elsewhere.

    Raises:
        EngineError: the key of vLLM's compile cache can't be changed, and would have to be.
    """
    if touchpoints.CONFIG_HASH.there or not compiles(vllm_config):
        return
    if _graph(vllm_config.additional_config):
        raise EngineError("this vLLM's compile cache can't be told of masks and slots: start with --enforce-eager")


def compute_hash_hook(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `VllmConfig.compute_hash`."""

    def compute_hash(self: Any) -> Any:
        settings = self.additional_config
        if not isinstance(settings, dict) or KEY not in settings:
            return original(self)
        without = copy.copy(self)
        without.additional_config = {key: value for key, value in settings.items() if key != KEY} | _graph(settings)
        return original(without)

    return compute_hash
